{{/* Settings in force: what the chart knows, below what was given. */}}
{{- define "tastetwin.appSettings" -}}
{{- $known := dict
      "gateway" (dict "backends" .Values.gateway.backends)
      "app" (dict "gateway" (.Values.app.gateway | default (printf "http://%s-gateway:8102" .Release.Name))) }}
{{- with .Values.run.id }}
{{- $_ := set $known.gateway "weights" (dict . 1.0) }}
{{- end }}
{{- if not .Values.state.redisSecret }}
{{- $_ := set $known.gateway "fresh" "/home/tastetwin/state/fresh" }}
{{- $_ := set $known.gateway "outputs" "/home/tastetwin/state/outputs" }}
{{- $_ := set $known.app "state" "/home/tastetwin/state/app" }}
{{- end }}
{{- merge (deepCopy .Values.settings) $known | toYaml }}
{{- end }}

{{/* Values of a tier with the addresses of Redis in its environment; refuses several pods with a state each. */}}
{{- define "tastetwin.withState" -}}
{{- $several := or .values.autoscaling.enabled (gt (int .values.replicas) 1) }}
{{- if and $several (not .root.Values.state.redisSecret) }}
{{- fail (printf "%s: several pods must share what they know: set state.redisSecret" .component) }}
{{- end }}
{{- end }}

{{- define "tastetwin.redisEgress" -}}
{{- if .Values.state.redisSecret }}
- ports:
    - {protocol: TCP, port: {{ .Values.state.redisPort }}}
{{- end }}
{{- end }}

{{- define "tastetwin.clientRules" -}}
{{- $policy := .root.Values.networkPolicy }}
{{- $deploy := include "tastetwin.deployPeer" . | fromYaml }}
{{- include "tastetwin.allow" (dict "from" (append .clients $deploy) "ports" (list .port)) }}
{{- include "tastetwin.allow" (dict "from" (append $policy.monitoring $deploy) "ports" (list .metrics)) }}
{{- end }}
