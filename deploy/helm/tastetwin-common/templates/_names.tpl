{{/* Every define takes a dict: "root" is the chart's own context, "component" one of its parts. */}}

{{- define "tastetwin.name" -}}
{{ .root.Release.Name }}-{{ .component }}
{{- end }}

{{/* What selectors go by: nothing that changes within the life of a release. */}}
{{- define "tastetwin.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "tastetwin.labels" -}}
{{ include "tastetwin.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tastetwin
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with (.root.Values.run).id }}
tastetwin.io/run: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "tastetwin.metadata" -}}
name: {{ .name | default (include "tastetwin.name" .) }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "tastetwin.labels" . | nindent 2 }}
{{- end }}

{{- define "tastetwin.image" -}}
{{- $image := .root.Values.image -}}
{{ with $image.registry }}{{ . }}/{{ end }}{{ .repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* The store as the commands take it: a folder or a URL. */}}
{{- define "tastetwin.storeAddress" -}}
{{ .root.Values.store.url | default "/store" }}
{{- end }}
