{{/* One autoscaler. Takes root, name (of the Deployment), labels (rendered), values (the
component's), minimum, maximum, query and threshold (for KEDA), metricType. */}}
{{- define "mach.autoscaler" -}}
{{- if gt (int .minimum) (int .maximum) }}{{ fail (printf "autoscaling of %s: minReplicas %d is more than maxReplicas %d" .name (int .minimum) (int .maximum)) }}{{ end }}
{{- $scaling := .values.autoscaling -}}
{{- if eq $scaling.mode "keda" }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- .labels | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ .name }}}
  minReplicaCount: {{ .minimum }}
  maxReplicaCount: {{ .maximum }}
  pollingInterval: 15
  advanced:
    horizontalPodAutoscalerConfig:
      behavior: {{- include "mach.scalingBehavior" . | nindent 8 }}
  triggers:
    - type: prometheus
      metricType: {{ .metricType }}
      metadata:
        serverAddress: {{ .root.Values.monitoring.prometheusAddress }}
        query: {{ .query | quote }}
        threshold: {{ toString .threshold | quote }}
{{- else }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- .labels | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ .name }}}
  minReplicas: {{ .minimum }}
  maxReplicas: {{ .maximum }}
  behavior: {{- include "mach.scalingBehavior" . | nindent 4 }}
  metrics:
    {{- if eq $scaling.mode "cpu" }}
    - type: ContainerResource
      containerResource:
        name: cpu
        container: {{ .component }}
        target: {type: Utilization, averageUtilization: {{ $scaling.cpuUtilization }}}
    {{- else }}
    - type: Pods
      pods:
        metric: {name: {{ $scaling.podsMetric }}}
        target: {type: AverageValue, averageValue: {{ $scaling.podsTarget | quote }}}
    {{- end }}
{{- end }}
{{- end -}}
