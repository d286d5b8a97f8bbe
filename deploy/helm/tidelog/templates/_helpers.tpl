{{- define "tidelog.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Pods are <fullname>-<ordinal>, and that is a label too: leave room for the ordinal and "-headless". */}}
{{- define "tidelog.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "tidelog.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "tidelog.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "tidelog.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tidelog.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tidelog.labels" -}}
{{ include "tidelog.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tidelog.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "tidelog.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "tidelog.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* What every broker of the release reads; what differs between them comes by environment. */}}
{{- define "tidelog.properties" -}}
{{- $external := .Values.external }}
{{- $own := dict
  "inter.broker.listener.name" "INTERNAL"
  "listener.security.protocol.map" (printf "INTERNAL:PLAINTEXT,CLIENT:PLAINTEXT%s" (ternary ",EXTERNAL:PLAINTEXT" "" $external.enabled))
  "listeners" (printf "INTERNAL://:%v,CLIENT://:%v%s" .Values.ports.internal .Values.ports.client (ternary (printf ",EXTERNAL://:%v" $external.port) "" $external.enabled))
  "tidelog.data.dir" "/var/lib/tidelog"
  "tidelog.http.listener" (printf ":%v" .Values.ports.http)
  "tidelog.shutdown.timeout.ms" (printf "%d" (mul .Values.shutdownTimeoutSeconds 1000))
  "tidelog.storage" .Values.storage.uri
  "tidelog.wal" .Values.wal.kind
}}
{{- if .Values.metadata.uri }}
{{- $_ := set $own "tidelog.metadata" .Values.metadata.uri }}
{{- end }}
{{- $other := list "tidelog.metadata" "node.id" "broker.id" "broker.rack" "advertised.listeners" "tidelog.wal.dir" }}
{{- range $key, $value := .Values.settings }}
{{- if or (hasKey $own $key) (has $key $other) }}
{{- fail (printf "settings: %s is written by the chart, see the values for it" $key) }}
{{- end }}
{{- end }}
{{- range $key, $value := merge $own .Values.settings }}
{{ $key }}={{ $value }}
{{- end }}
{{- end }}

{{- define "tidelog.advertised" -}}
{{- $pod := printf "$(POD_NAME).%s-headless.%s.svc.%s" (include "tidelog.fullname" .) .Release.Namespace .Values.clusterDomain }}
{{- printf "INTERNAL://%s:%v,CLIENT://%s:%v" $pod .Values.ports.internal $pod .Values.ports.client }}
{{- if .Values.external.enabled }}
{{- printf ",EXTERNAL://%s:" (.Values.external.host | replace "{ordinal}" "$(POD_INDEX)" | replace "{hostIP}" "$(HOST_IP)") }}
{{- if eq .Values.external.type "NodePort" }}
{{- printf "%v$(POD_INDEX)" .Values.external.nodePortPrefix }}
{{- else }}
{{- .Values.external.port }}
{{- end }}
{{- end }}
{{- end }}

{{/* What one value alone cannot tell. */}}
{{- define "tidelog.check" -}}
{{- $end := add .Values.firstNodeId .Values.replicas | int }}
{{- if .Values.external.enabled }}
{{- if and (eq .Values.external.type "LoadBalancer") (not (contains "{ordinal}" .Values.external.host)) }}
{{- fail "external.host: every broker needs an address of its own: write {ordinal} in it, broker-{ordinal}.kafka.example.com" }}
{{- end }}
{{- if and (eq .Values.external.type "NodePort") (gt $end 10) }}
{{- fail "external.type=NodePort: node ids must stay below 10; use LoadBalancer" }}
{{- end }}
{{- end }}
{{- if and (eq .Values.wal.kind "objects") (eq (get .Values.settings "tidelog.internal.wal") "volume") }}
{{- fail "settings: tidelog.internal.wal=volume needs a disk: write wal.kind=volume and set tidelog.wal of the topics" }}
{{- end }}
{{- $ports := list .Values.ports.client .Values.ports.internal .Values.ports.http }}
{{- if .Values.external.enabled }}
{{- $ports = append $ports .Values.external.port }}
{{- end }}
{{- if ne (len $ports) (len (uniq $ports)) }}
{{- fail "ports: two listeners have the same port" }}
{{- end }}
{{- end }}
