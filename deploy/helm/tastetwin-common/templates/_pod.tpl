{{/* What pods have in common. The user is that of the images. */}}
{{- define "tastetwin.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "tastetwin.containerSecurity" -}}
securityContext:
  runAsNonRoot: true
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Where pods go: "values" are those of the part. */}}
{{- define "tastetwin.scheduling" -}}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tastetwin.resources" -}}
{{- $resources := deepCopy .values.resources -}}
{{- with .values.gpu }}
{{- if gt (int .count) 0 }}
{{- $_ := set $resources "limits" (merge (dict .resource (int .count)) ($resources.limits | default dict)) }}
{{- end }}
{{- end }}
resources:
  {{- toYaml $resources | nindent 2 }}
{{- end }}

{{- define "tastetwin.environment" -}}
env:
  - name: HOME
    value: {{ .home | default "/home/tastetwin" }}
  {{- range $name, $value := .values.environment }}
  - name: {{ $name }}
    value: {{ $value | quote }}
  {{- end }}
  {{- with .redis }}
  {{- if $.root.Values.state.redisSecret }}
  {{- range $name, $key := . }}
  - name: {{ $name }}
    valueFrom:
      secretKeyRef: {name: {{ $.root.Values.state.redisSecret }}, key: {{ $key }}}
  {{- end }}
  {{- end }}
  {{- end }}
{{- $secrets := compact (list (ternary .root.Values.store.environmentSecret "" (hasKey . "store")) .values.environmentSecret) }}
{{- with $secrets }}
envFrom:
  {{- range . }}
  - secretRef:
      name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Settings, secrets, the store, and the two places that may be written. "secret" is {name, keys}, "extraSecret"
     {name, path}, "source" a claim, "state" {claim, path}; "storeReadOnly" mounts the store for reading alone; no "store" leaves it out. */}}
{{- define "tastetwin.mounts" -}}
volumeMounts:
  - name: settings
    mountPath: /etc/tastetwin
    readOnly: true
  - name: tmp
    mountPath: /tmp
  {{- if and .store (not .root.Values.store.url) }}
  - name: store
    mountPath: /store
    {{- if .storeReadOnly }}
    readOnly: true
    {{- end }}
  {{- end }}
  {{- if (.secret).name }}
  - name: secrets
    mountPath: /run/secrets/tastetwin
    readOnly: true
  {{- end }}
  {{- with .extraSecret }}
  - name: more-secrets
    mountPath: {{ .path }}
    readOnly: true
  {{- end }}
  {{- if .source }}
  - name: source
    mountPath: /source
    readOnly: true
  {{- end }}
  {{- with .state }}
  - name: state
    mountPath: {{ .path }}
  {{- end }}
{{- end }}

{{- define "tastetwin.volumes" -}}
volumes:
  - name: settings
    configMap:
      name: {{ .root.Release.Name }}-{{ .settingsOf | default "settings" }}
  - name: tmp
    emptyDir:
      sizeLimit: {{ .values.tmpSize }}
  {{- if and .store (not .root.Values.store.url) }}
  - name: store
    persistentVolumeClaim:
      claimName: {{ .root.Values.store.claim }}
  {{- end }}
  {{- with .secret }}
  {{- if .name }}
  - name: secrets
    secret:
      secretName: {{ .name }}
      defaultMode: 0440
      {{- with .keys }}
      items:
        {{- range . }}
        - key: {{ . }}
          path: {{ . }}
        {{- end }}
      {{- end }}
  {{- end }}
  {{- end }}
  {{- with .extraSecret }}
  - name: more-secrets
    secret:
      secretName: {{ .name }}
      defaultMode: 0440
  {{- end }}
  {{- with .source }}
  - name: source
    persistentVolumeClaim:
      claimName: {{ . }}
  {{- end }}
  {{- with .state }}
  - name: state
    {{- if .claim }}
    persistentVolumeClaim:
      claimName: {{ .claim }}
    {{- else }}
    emptyDir: {}
    {{- end }}
  {{- end }}
{{- end }}

{{- define "tastetwin.settings" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "tastetwin.metadata" (dict "root" .root "component" (.component | default "settings")) | nindent 2 }}
data:
  settings.yaml: |
    {{- toYaml .settings | nindent 4 }}
{{- end }}
