"""The controller's part of a broker's settings."""

from broker.compaction import Limits as CompactionLimits
from broker.settings import Settings
from controller.decide import Limits
from controller.merging import MergeRules
from controller.runtime import ControllerSettings


def controller_settings(settings: Settings) -> ControllerSettings:
    """Bounds and intervals of the controller."""
    return ControllerSettings(
        session_ms=settings.tidelog_session_timeout_ms,
        lease_ms=settings.tidelog_controller_lease_ms,
        delete_grace_ms=settings.tidelog_delete_grace_ms,
        retention_check_ms=settings.log_retention_check_interval_ms,
        orphan_check_ms=settings.tidelog_orphan_check_interval_ms,
        balance=settings.tidelog_balance,
        balance_interval_ms=settings.tidelog_balance_interval_ms,
        balance_moves_max=settings.tidelog_balance_moves_max,
        balance_threshold_percent=settings.tidelog_balance_threshold_percent,
        merge_check_ms=settings.tidelog_merge_check_interval_ms,
        merging=merge_rules(settings),
        compaction=settings.log_cleaner_enable,
        compaction_check_ms=settings.log_cleaner_backoff_ms,
        limits=Limits(ranges_per_log=settings.tidelog_log_ranges_max),
    )


def merge_rules(settings: Settings) -> MergeRules:
    """The bounds of merging that the settings say."""
    head_max = settings.tidelog_log_ranges_head_max
    return MergeRules(
        enabled=settings.tidelog_merge_enable,
        fan_out=settings.tidelog_merge_fan_out,
        object_bytes_max=settings.tidelog_merge_object_bytes,
        shared_ms=settings.tidelog_merge_shared_ms,
        head_max=head_max,
        head_keep=head_max * 2 // 3,
        manifest_rows_max=settings.tidelog_manifest_ranges_max,
    )


def compaction_limits(settings: Settings) -> CompactionLimits:
    """The bounds of this broker's passes of compaction."""
    return CompactionLimits(
        map_bytes=settings.log_cleaner_dedupe_buffer_size,
        object_bytes=settings.tidelog_merge_object_bytes,
        producer_expiration_ms=settings.producer_id_expiration_ms,
    )
