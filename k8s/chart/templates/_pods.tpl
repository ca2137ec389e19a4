{{/* Parts of pods. */}}

{{/* Flags of a program from a map: {max-batch-size: 64, reflection: false}. Takes flags and
reserved, the names that the chart sets itself. */}}
{{- define "mach.flags" -}}
{{- $reserved := .reserved -}}
{{- range $name, $value := .flags }}
{{- if has $name $reserved }}{{ fail (printf "flags: --%s is set by the chart" $name) }}{{ end }}
{{- if kindIs "bool" $value }}
- --{{ ternary "" "no-" $value }}{{ $name }}
{{- else if and (kindIs "float64" $value) (eq $value (float64 (int64 $value))) }}
- {{ printf "--%s=%d" $name (int64 $value) | quote }}
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

{{/* Certificates of one component's gRPC port, as JSON: {"secret", "clientCa"}, names of Secrets,
empty where there are none. Takes root and component. */}}
{{- define "mach.serverTls" -}}
{{- $tls := .root.Values.tls -}}
{{- $clientCa := $tls.clients.clientCaSecret -}}
{{- $secret := $tls.clients.secret -}}
{{- if eq .component "shard" -}}
{{- $secret = $tls.shards.secret -}}
{{- $clientCa = ternary "" ($tls.shards.clientCaSecret | default $tls.shards.clientSecret) (empty $tls.shards.clientSecret) -}}
{{- end -}}
{{- dict "secret" $secret "clientCa" $clientCa | toJson -}}
{{- end -}}

{{/* A volume of keys of a Secret, which follows the Secret. Takes name, secret, keys. */}}
{{- define "mach.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items:
      {{- range .keys }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end -}}

{{/* Certificates and tokens of a server: name of the volume, Secret and its keys, as JSON. A pod
gets no key that its program does not read. Takes root and component. */}}
{{- define "mach.secrets" -}}
{{- $values := .root.Values -}}
{{- $pair := list "tls.crt" "tls.key" -}}
{{- $own := include "mach.serverTls" . | fromJson -}}
{{- $secrets := list -}}
{{- if $own.secret -}}
{{- $secrets = append $secrets (dict "name" "tls" "secret" $own.secret "keys" $pair) -}}
{{- end -}}
{{- if $own.clientCa -}}
{{- $secrets = append $secrets (dict "name" "client-ca" "secret" $own.clientCa "keys" (list "ca.crt")) -}}
{{- end -}}
{{- if eq .component "aggregator" -}}
{{- with $values.tls.shards -}}
{{- if .secret -}}
{{- $secrets = append $secrets (dict "name" "shard-ca" "secret" (.caSecret | default .secret) "keys" (list "ca.crt")) -}}
{{- end -}}
{{- if .clientSecret -}}
{{- $secrets = append $secrets (dict "name" "shard-client" "secret" .clientSecret "keys" $pair) -}}
{{- end -}}
{{- end -}}
{{- with $values.tokens -}}
{{- if .secret -}}
{{- $secrets = append $secrets (dict "name" "tokens" "secret" .secret "keys" (list .key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "secrets" $secrets | toJson -}}
{{- end -}}

{{/* The port that probes ask: kubelets speak no TLS, and an overload of the other port shall not
     have a pod killed that does all it can. Takes root and component. */}}
{{- define "mach.probePort" -}}
{{- .root.Values.ports.health -}}
{{- end -}}

{{/* What a component's gRPC port speaks. Takes root and component. */}}
{{- define "mach.appProtocol" -}}
{{- $own := include "mach.serverTls" . | fromJson -}}
{{- ternary "https" "kubernetes.io/h2c" (not (empty $own.secret)) -}}
{{- end -}}

{{/* Volumes of a server. Takes root and component. */}}
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
{{- range (include "mach.secrets" . | fromJson).secrets }}
{{ include "mach.secretVolume" . }}
{{- end }}
{{- end -}}

{{/* What both servers are: takes root, values, component. */}}
{{- define "mach.serverFlags" -}}
- --bundle=/run/mach/bundle
- --listen={{ .root.Values.listenHost }}:{{ .root.Values.ports.grpc }}
- --metrics-listen={{ .root.Values.listenHost }}:{{ .root.Values.ports.metrics }}
- --health-listen={{ .root.Values.listenHost }}:{{ .root.Values.ports.health }}
- --drain-seconds={{ .values.drainSeconds }}
- --log-format={{ .root.Values.logFormat }}
- --log-level={{ .root.Values.logLevel }}
{{- $tls := include "mach.serverTls" . | fromJson }}
{{- if $tls.secret }}
- --tls-certificate=/etc/mach/tls/tls.crt
- --tls-key=/etc/mach/tls/tls.key
{{- end }}
{{- if $tls.clientCa }}
- --tls-client-ca=/etc/mach/client-ca/ca.crt
{{- end }}
{{- end -}}

{{/* How an aggregator knows shards and callers: takes root. */}}
{{- define "mach.aggregatorGuards" -}}
{{- with .root.Values.tls.shards }}
{{- if .secret }}
- --shard-ca=/etc/mach/shard-ca/ca.crt
{{- end }}
{{- if .clientSecret }}
- --shard-certificate=/etc/mach/shard-client/tls.crt
- --shard-key=/etc/mach/shard-client/tls.key
{{- end }}
{{- with .serverName }}
- --shard-server-name={{ . }}
{{- end }}
{{- end }}
{{- with .root.Values.tokens }}
{{- if .secret }}
- --tokens=/etc/mach/tokens/{{ .key }}
{{- end }}
{{- end }}
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
bundle,listen,metrics-listen,admin-listen,health-listen,tls-certificate,tls-key,tls-client-ca,tokens,shard-ca,shard-certificate,shard-key,shard-server-name,bundle-root,drain-seconds,log-format,log-level,ready-file
{{- end -}}

{{- define "mach.serverPorts" -}}
- {name: grpc, containerPort: {{ .root.Values.ports.grpc }}, protocol: TCP}
- {name: metrics, containerPort: {{ .root.Values.ports.metrics }}, protocol: TCP}
- {name: health, containerPort: {{ .root.Values.ports.health }}, protocol: TCP}
{{- end -}}

{{- define "mach.serverMounts" -}}
- {name: bundles, mountPath: /bundles, readOnly: true}
- {name: run, mountPath: /run/mach, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- range (include "mach.secrets" . | fromJson).secrets }}
- {name: {{ .name }}, mountPath: /etc/mach/{{ .name }}, readOnly: true}
{{- end }}
{{- end -}}

{{/* Ready: can answer. Alive: the event loop turns, whatever other servers do. */}}
{{- define "mach.probes" -}}
readinessProbe:
  grpc: {port: {{ include "mach.probePort" . }}, service: ""}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  grpc: {port: {{ include "mach.probePort" . }}, service: liveness}
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
