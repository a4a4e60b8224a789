{{/* A tier of serving: Deployment, Service, disruption budget, autoscaler, account.
     "root", "component", "repository" (image), "values" (of the tier), "args", "ports" (name -> number),
     "live" and "ready" (paths), "probe" (port's name), "secret", "state", "store", "storeReadOnly". */}}
{{- define "tastetwin.tier" -}}
{{- include "tastetwin.account" . }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "tastetwin.metadata" . | nindent 2 }}
spec:
  {{- if not .values.autoscaling.enabled }}
  replicas: {{ .values.replicas }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "tastetwin.selector" . | nindent 6 }}
  strategy:
    rollingUpdate:
      maxUnavailable: 0
  template:
    metadata:
      labels:
        {{- include "tastetwin.labels" . | nindent 8 }}
      annotations:
        # Settings are read at the start: pods with others are other pods.
        tastetwin.io/settings: {{ .settings | toYaml | sha256sum | trunc 16 | quote }}
        {{- with .values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "tastetwin.name" . }}
      {{- include "tastetwin.podSecurity" . | nindent 6 }}
      {{- include "tastetwin.scheduling" . | nindent 6 }}
      # SIGTERM drains: seconds for that, and for requests that were accepted.
      terminationGracePeriodSeconds: 40
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              {{- include "tastetwin.selector" . | nindent 14 }}
      containers:
        - name: {{ .component }}
          image: {{ include "tastetwin.image" . }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args:
            {{- toYaml .args | nindent 12 }}
          ports:
            {{- range $name, $port := .ports }}
            - name: {{ $name }}
              containerPort: {{ $port }}
            {{- end }}
          {{- include "tastetwin.environment" . | nindent 10 }}
          {{- include "tastetwin.resources" . | nindent 10 }}
          {{- include "tastetwin.containerSecurity" . | nindent 10 }}
          startupProbe:
            httpGet: {path: {{ .live }}, port: {{ .probe }}}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: {{ div .values.startupSeconds 2 }}
          livenessProbe:
            httpGet: {path: {{ .live }}, port: {{ .probe }}}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            httpGet: {path: {{ .ready }}, port: {{ .probe }}}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 2
          {{- include "tastetwin.mounts" . | nindent 10 }}
      {{- include "tastetwin.volumes" . | nindent 6 }}
---
apiVersion: v1
kind: Service
metadata:
  {{- include "tastetwin.metadata" . | nindent 2 }}
spec:
  selector:
    {{- include "tastetwin.selector" . | nindent 4 }}
  ports:
    {{- range $name, $port := .ports }}
    - name: {{ $name }}
      port: {{ $port }}
      targetPort: {{ $name }}
    {{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "tastetwin.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ .values.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "tastetwin.selector" . | nindent 6 }}
{{- if .values.autoscaling.enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "tastetwin.metadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "tastetwin.name" . }}
  minReplicas: {{ .values.autoscaling.min }}
  maxReplicas: {{ .values.autoscaling.max }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ .values.autoscaling.cpu }}
{{- end }}
{{- if .root.Values.serviceMonitor.enabled }}
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  {{- include "tastetwin.metadata" . | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "tastetwin.selector" . | nindent 6 }}
  endpoints:
    - port: {{ .metrics }}
      path: /metrics
      interval: {{ .root.Values.serviceMonitor.interval }}
      # Processes of a tier are told apart by `instance` alone, which is what the rules sum over.
      relabelings:
        - {action: labeldrop, regex: pod|container|node}
{{- end }}
{{- end }}

{{- define "tastetwin.account" -}}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "tastetwin.metadata" . | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
