{{/* Pods of a part take and send nothing but what "ingress" and "egress" (lists of rules) say. With "components", pods of
     these parts, whoever started them; with "store", they reach one that lies elsewhere. */}}
{{- define "tastetwin.network" -}}
{{- if .root.Values.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "tastetwin.metadata" . | nindent 2 }}
spec:
  podSelector:
    {{- if .components }}
    {{- include "tastetwin.anyOf" . | nindent 4 }}
    {{- else }}
    matchLabels:
      {{- include "tastetwin.selector" . | nindent 6 }}
    {{- end }}
  policyTypes: [Ingress, Egress]
  {{- with .ingress }}
  ingress:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  egress:
    - ports:
        - {protocol: UDP, port: 53}
        - {protocol: TCP, port: 53}
    {{- if and .store .root.Values.store.url }}
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

{{- define "tastetwin.anyOf" -}}
matchLabels:
  app.kubernetes.io/part-of: tastetwin
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: {{ toJson .components }}
{{- end }}

{{/* Pods of a deployment, which ask what they have started: their component is their task in Airflow. */}}
{{- define "tastetwin.deployTasks" -}}
[deploy_model, deploy_app, switch, check, remove_app, remove_model, rollback]
{{- end }}

{{- define "tastetwin.deployPeer" -}}
podSelector:
  {{- include "tastetwin.anyOf" (dict "components" (include "tastetwin.deployTasks" . | fromYamlArray)) | nindent 2 }}
{{- end }}
