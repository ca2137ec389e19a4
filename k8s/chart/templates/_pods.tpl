{{/* Parts of pods. */}}

{{/* Flags of a program from a map: {max-batch-size: 64, reflection: false}. Takes flags and
reserved, the names that the chart sets itself. */}}
{{- define "mach.flags" -}}
{{- $reserved := .reserved -}}
{{- range $name, $value := .flags }}
{{- if has $name $reserved }}{{ fail (printf "flags: --%s is set by the chart" $name) }}{{ end }}
{{- if kindIs "bool" $value }}
- --{{ ternary "" "no-" $value }}{{ $name }}
{{- else if kindIs "float64" $value }}
- {{ printf "--%s=%s" $name (toString $value | replace "e+" "e") | quote }}
{{- else }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "mach.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "mach.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Where pods run: takes root and component, the component's values. */}}
{{- define "mach.placement" -}}
serviceAccountName: {{ include "mach.fullname" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.gpu }}
{{- if and .enabled .runtimeClassName }}
runtimeClassName: {{ .runtimeClassName }}
{{- end }}
{{- end }}
securityContext: {{- include "mach.podSecurity" . | nindent 2 }}
{{- end -}}

{{/* Resources with the GPUs asked for: takes values, the component's. */}}
{{- define "mach.resources" -}}
{{- $resources := deepCopy .values.resources -}}
{{- with .values.gpu -}}
{{- if .enabled -}}
{{- $limits := merge (dict .resource (toString .count)) ($resources.limits | default dict) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Environment of what reaches the store. */}}
{{- define "mach.storeEnvironment" -}}
env:
  - {name: HOME, value: /tmp}
  {{- range $name, $value := .root.Values.store.env }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
{{- with .root.Values.store.credentialsSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end -}}

{{/* The container that fetches a bundle before the server starts. Takes root, bundle, role and
repetitions (comma separated, or ""). */}}
{{- define "mach.fetch" -}}
{{- $bundle := index .root.Values.bundles .bundle -}}
{{- $store := .root.Values.store -}}
- name: fetch
  image: {{ .root.Values.images.serving }}
  imagePullPolicy: {{ .root.Values.images.pullPolicy }}
  args:
    - mach
    - bundle
    - fetch
    {{- if $store.url }}
    - {{ printf "%s/%s" (trimSuffix "/" $store.url) $bundle.version | quote }}
    {{- else }}
    - {{ printf "%s/%s" (clean (printf "/store/%s" $store.path)) $bundle.version | quote }}
    {{- end }}
    - /bundles
    - --version={{ $bundle.version }}
    - --expect-repetitions={{ int $bundle.repetitions }}
    - --role={{ .role }}
    {{- with .repetitions }}
    - --repetition={{ . }}
    {{- end }}
    - --link=/run/mach/bundle
  {{- include "mach.storeEnvironment" . | nindent 2 }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {memory: 512Mi}
  securityContext: {{- include "mach.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: bundles, mountPath: /bundles}
    - {name: run, mountPath: /run/mach}
    - {name: tmp, mountPath: /tmp}
    {{- if $store.volume }}
    - {name: store, mountPath: /store, readOnly: true}
    {{- end }}
{{- end -}}

{{/* Volumes of a server. */}}
{{- define "mach.volumes" -}}
- name: bundles
  {{- if .root.Values.cache.volume }}
  {{- toYaml .root.Values.cache.volume | nindent 2 }}
  {{- else }}
  emptyDir: {sizeLimit: {{ .root.Values.cache.sizeLimit }}}
  {{- end }}
- name: run
  emptyDir: {sizeLimit: 1Mi}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- with .root.Values.store.volume }}
- name: store
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What both servers are: takes root, values. */}}
{{- define "mach.serverFlags" -}}
- --bundle=/run/mach/bundle
- --listen={{ .root.Values.listenHost }}:{{ .root.Values.ports.grpc }}
- --metrics-listen={{ .root.Values.listenHost }}:{{ .root.Values.ports.metrics }}
- --drain-seconds={{ .values.drainSeconds }}
- --log-format={{ .root.Values.logFormat }}
- --log-level={{ .root.Values.logLevel }}
{{- end -}}

{{/* Where servers send their traces, and which: entries of env. Takes root, bundle. */}}
{{- define "mach.tracingEnvironment" -}}
{{- $tracing := .root.Values.tracing -}}
{{- if $tracing.endpoint -}}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ $tracing.endpoint | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: {{ $tracing.sampler }}}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ toString $tracing.ratio | quote }}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ .root.Release.Namespace }},k8s.pod.name=$(POD_NAME),mach.bundle={{ .bundle }}
{{- range $name, $value := $tracing.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "mach.tracingCredentials" -}}
{{- with .root.Values.tracing -}}
{{- if and .endpoint .credentialsSecret -}}
envFrom:
  - secretRef: {name: {{ .credentialsSecret }}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "mach.reservedFlags" -}}
bundle,listen,metrics-listen,admin-listen,bundle-root,drain-seconds,log-format,log-level,ready-file
{{- end -}}

{{- define "mach.serverPorts" -}}
- {name: grpc, containerPort: {{ .root.Values.ports.grpc }}, protocol: TCP}
- {name: metrics, containerPort: {{ .root.Values.ports.metrics }}, protocol: TCP}
{{- end -}}

{{- define "mach.serverMounts" -}}
- {name: bundles, mountPath: /bundles, readOnly: true}
- {name: run, mountPath: /run/mach, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* Ready: can answer. Alive: the event loop turns, whatever other servers do. */}}
{{- define "mach.probes" -}}
readinessProbe:
  grpc: {port: {{ .root.Values.ports.grpc }}, service: ""}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  grpc: {port: {{ .root.Values.ports.grpc }}, service: liveness}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/* The end of a pod: out of its Services first, then SIGTERM, then time to finish. */}}
{{- define "mach.gracePeriod" -}}
{{ add .root.Values.preStopSeconds (ceil .values.drainSeconds) 10 }}
{{- end -}}

{{- define "mach.preStop" -}}
preStop:
  sleep: {seconds: {{ .root.Values.preStopSeconds }}}
{{- end -}}

{{/* Pods apart from each other, as far as there is room: takes selector, rendered. */}}
{{- define "mach.spread" -}}
- topologyKey: kubernetes.io/hostname
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- .selector | nindent 6 }}
- topologyKey: topology.kubernetes.io/zone
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- .selector | nindent 6 }}
{{- end -}}

{{/* How an autoscaler reacts: up at once, down slowly. Takes values, the component's. */}}
{{- define "mach.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Percent, value: 100, periodSeconds: 30}
scaleDown:
  stabilizationWindowSeconds: 300
  policies:
    - {type: Pods, value: {{ .values.autoscaling.scaleDownPods }}, periodSeconds: 300}
{{- end -}}
