"""DescribeUserScramCredentials v0, AlterUserScramCredentials v0 (KIP-554).

The client sends salted passwords; what is stored are the keys that RFC 5802 makes of them, from which no password can
be had. Kafka's bounds: 4,096 to 16,384 iterations. This version does not authenticate: credentials are kept for the
time when listeners do.
"""

import hashlib
import hmac
from collections import Counter
from functools import partial

from broker.services import RequestContext
from controller.commands import AlterScram, ScramAlteration
from protocol import messages as m
from protocol.errors import ErrorCode, KafkaError

DIGESTS = {1: "sha256", 2: "sha512"}
"""Kafka's numbers of the mechanisms."""
ITERATIONS_MIN, ITERATIONS_MAX = 4096, 16384
NAME_CHARACTERS_MAX = 1000
SALT_BYTES_MAX = 1024


def keys_of(mechanism: int, salted_password: bytes) -> tuple[bytes, bytes]:
    """(stored key, server key) of RFC 5802, section 3."""
    digest = DIGESTS[mechanism]
    client_key = hmac.digest(salted_password, b"Client Key", digest)
    return hashlib.new(digest, client_key).digest(), hmac.digest(salted_password, b"Server Key", digest)


def describe_user_scram_credentials(
    request: m.DescribeUserScramCredentialsRequest, context: RequestContext
) -> m.DescribeUserScramCredentialsResponse:
    """Mechanisms and iterations of the users asked for, or of all."""
    scram = context.services.controller.state.scram
    response = m.DescribeUserScramCredentialsResponse
    asked = Counter(user.name for user in request.users or ()) or dict.fromkeys(sorted(scram), 1)
    results = []
    for name, count in asked.items():
        result = response.DescribeUserScramCredentialsResult(user=name)
        if count > 1:
            result.error_code = ErrorCode.DUPLICATE_RESOURCE
            result.error_message = (
                f"Cannot describe SCRAM credentials for the same user twice in a single request: {name}"
            )
        elif name not in scram:
            result.error_code = ErrorCode.RESOURCE_NOT_FOUND
            result.error_message = f"Attempt to describe a user credential that does not exist: {name}"
        else:
            result.credential_infos = [
                response.CredentialInfo(mechanism=mechanism, iterations=credential.iterations)
                for mechanism, credential in sorted(scram[name].items())
            ]
        results.append(result)
    return response(results=results)


async def alter_user_scram_credentials(
    request: m.AlterUserScramCredentialsRequest, context: RequestContext
) -> m.AlterUserScramCredentialsResponse:
    """One result per user."""
    services = context.services
    found: dict[str, KafkaError | None] = {}
    asked: list[ScramAlteration] = []
    counts = Counter([one.name for one in request.deletions] + [one.name for one in request.upsertions])
    makers = [(one.name, partial(_upsertion, one)) for one in request.upsertions]
    makers += [(one.name, partial(_deletion, one)) for one in request.deletions]
    for name, make in makers:
        try:
            alteration = make()
            if counts[name] > 1:
                why = "A user credential cannot be altered twice in the same request"
                raise KafkaError(ErrorCode.DUPLICATE_RESOURCE, why)
            asked.append(alteration)
        except KafkaError as error:
            found[name] = error
    if asked:
        try:
            answer = await services.controller.ask(AlterScram(services.token(16), tuple(asked)))
            for alteration, (code, message) in zip(asked, answer.results):
                found[alteration.user] = KafkaError(ErrorCode(code), message or "") if code else None
        except KafkaError as error:
            found.update(dict.fromkeys((alteration.user for alteration in asked), error))
    response = m.AlterUserScramCredentialsResponse
    return response(
        results=[
            response.AlterUserScramCredentialsResult(
                user=name,
                error_code=ErrorCode.NONE if error is None else error.code,
                error_message=None if error is None else error.message,
            )
            for name, error in found.items()
        ]
    )


def _check_user(name: str, mechanism: int) -> None:
    """KafkaError: UNACCEPTABLE_CREDENTIAL, UNSUPPORTED_SASL_MECHANISM."""
    if not name:
        raise KafkaError(ErrorCode.UNACCEPTABLE_CREDENTIAL, "Username must not be empty")
    if len(name) > NAME_CHARACTERS_MAX:
        raise KafkaError(ErrorCode.UNACCEPTABLE_CREDENTIAL, f"A user name has at most {NAME_CHARACTERS_MAX} characters")
    if mechanism not in DIGESTS:
        raise KafkaError(ErrorCode.UNSUPPORTED_SASL_MECHANISM, "Unknown SCRAM mechanism")


def _deletion(one: m.AlterUserScramCredentialsRequest.ScramCredentialDeletion) -> ScramAlteration:
    _check_user(one.name, one.mechanism)
    return ScramAlteration(one.name, one.mechanism)


def _upsertion(one: m.AlterUserScramCredentialsRequest.ScramCredentialUpsertion) -> ScramAlteration:
    _check_user(one.name, one.mechanism)
    if one.iterations < ITERATIONS_MIN:
        raise KafkaError(ErrorCode.UNACCEPTABLE_CREDENTIAL, "Too few iterations")
    if one.iterations > ITERATIONS_MAX:
        raise KafkaError(ErrorCode.UNACCEPTABLE_CREDENTIAL, "Too many iterations")
    if len(one.salt) > SALT_BYTES_MAX:
        raise KafkaError(ErrorCode.UNACCEPTABLE_CREDENTIAL, f"A salt has at most {SALT_BYTES_MAX} bytes")
    stored_key, server_key = keys_of(one.mechanism, bytes(one.salted_password))
    return ScramAlteration(one.name, one.mechanism, one.iterations, bytes(one.salt), stored_key, server_key)
