{{/* A CronJob of one container. "values" has schedule and, if wanted, timeZone, retries, seconds; "command" stands in for the
     image's own. */}}
{{- define "tastetwin.cron" -}}
---
apiVersion: batch/v1
kind: CronJob
metadata:
  {{- include "tastetwin.metadata" . | nindent 2 }}
spec:
  schedule: {{ .values.schedule | quote }}
  {{- with .values.timeZone }}
  timeZone: {{ . }}
  {{- end }}
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 3600
  successfulJobsHistoryLimit: 3
  failedJobsHistoryLimit: 3
  jobTemplate:
    spec:
      backoffLimit: {{ .values.retries | default 0 }}
      activeDeadlineSeconds: {{ .values.seconds | default 600 }}
      ttlSecondsAfterFinished: 604800
      template:
        metadata:
          labels:
            {{- include "tastetwin.labels" . | nindent 12 }}
        spec:
          restartPolicy: Never
          serviceAccountName: {{ .root.Release.Name }}-jobs
          {{- include "tastetwin.podSecurity" . | nindent 10 }}
          {{- include "tastetwin.scheduling" . | nindent 10 }}
          containers:
            - name: {{ .component }}
              image: {{ include "tastetwin.image" . }}
              imagePullPolicy: {{ .root.Values.image.pullPolicy }}
              {{- with .command }}
              command:
                {{- toYaml . | nindent 16 }}
              {{- end }}
              args:
                {{- toYaml .args | nindent 16 }}
              {{- include "tastetwin.environment" . | nindent 14 }}
              {{- include "tastetwin.resources" . | nindent 14 }}
              {{- include "tastetwin.containerSecurity" . | nindent 14 }}
              {{- include "tastetwin.mounts" . | nindent 14 }}
          {{- include "tastetwin.volumes" . | nindent 10 }}
{{- end }}
