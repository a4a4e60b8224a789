{{/* Pods of a part take and send nothing but what "ingress" and "egress" (lists of rules) say. */}}
{{- define "tastetwin.network" -}}
{{- if .root.Values.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "tastetwin.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- .selector | default (include "tastetwin.selector" .) | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- with .ingress }}
  ingress:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  egress:
    - ports:
        - {protocol: UDP, port: 53}
        - {protocol: TCP, port: 53}
    {{- if .root.Values.store.url }}
    - ports:
        - {protocol: TCP, port: {{ .root.Values.store.port }}}
    {{- end }}
    {{- with concat (.egress | default list) .root.Values.networkPolicy.egress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- end }}

{{/* Who may reach ports: {"from": [peers], "ports": [numbers]} as a rule; nobody, if there are no peers. */}}
{{- define "tastetwin.allow" -}}
{{- if .from }}
- from:
    {{- toYaml .from | nindent 4 }}
  ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- end }}

{{/* A part of TasteTwin in this namespace, as a peer; of one release if "instance" says so. */}}
{{- define "tastetwin.peer" -}}
podSelector:
  matchLabels:
    app.kubernetes.io/part-of: tastetwin
    app.kubernetes.io/component: {{ .component }}
    {{- with .instance }}
    app.kubernetes.io/instance: {{ . }}
    {{- end }}
{{- end }}
