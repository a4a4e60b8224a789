{{/* A route of Traefik "name" to gateway and app of "release": one IngressRoute, whose services a deployment replaces.
     What could not be sent is tried once more; what a pod had taken when it was killed is not, as Traefik has it.
     With "keep" it outlives the release. */}}
{{- define "tastetwin.route" -}}
---
apiVersion: traefik.io/v1alpha1
kind: IngressRoute
metadata:
  {{- include "tastetwin.metadata" (dict "root" .root "component" "route" "name" .name) | nindent 2 }}
  {{- include "tastetwin.kept" . | nindent 2 }}
spec:
  entryPoints:
    {{- toYaml .route.entryPoints | nindent 4 }}
  routes:
    {{- $hosts := dict "app" .route.appHost "gateway" .route.gatewayHost }}
    {{- $ports := dict "app" 8103 "gateway" 8102 }}
    {{- $top := . }}
    {{- range $tier, $host := $hosts }}
    {{- if $host }}
    - kind: Rule
      match: Host(`{{ $host }}`)
      middlewares:
        - name: {{ $top.name }}-limit
        - name: {{ $top.name }}-again
      services:
        - name: {{ $top.release }}-{{ $tier }}
          port: {{ get $ports $tier }}
    {{- end }}
    {{- end }}
  tls:
    {{- if .route.tlsSecret }}
    secretName: {{ .route.tlsSecret }}
    {{- else }}
    {}
    {{- end }}
---
apiVersion: traefik.io/v1alpha1
kind: Middleware
metadata:
  {{- include "tastetwin.metadata" (dict "root" .root "component" "route" "name" (printf "%s-limit" .name)) | nindent 2 }}
  {{- include "tastetwin.kept" . | nindent 2 }}
spec:
  rateLimit:
    average: {{ .route.perSecond }}
    burst: {{ .route.burst }}
---
apiVersion: traefik.io/v1alpha1
kind: Middleware
metadata:
  {{- include "tastetwin.metadata" (dict "root" .root "component" "route" "name" (printf "%s-again" .name)) | nindent 2 }}
  {{- include "tastetwin.kept" . | nindent 2 }}
spec:
  retry:
    attempts: 2
    initialInterval: 100ms
{{- end }}

{{- define "tastetwin.kept" -}}
{{- if .keep }}
annotations:
  helm.sh/resource-policy: keep
{{- end }}
{{- end }}
