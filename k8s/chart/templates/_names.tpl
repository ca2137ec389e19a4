{{/* Names and labels. Every definition takes a dict with `root`, the chart's own context. */}}

{{- define "mach.fullname" -}}
{{- $name := .root.Values.fullnameOverride | default .root.Release.Name -}}
{{- $name | trunc 23 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that select: root, component, and bundle (its name) where it is one fleet's. The
version and the repetitions are among them because a Deployment's selector cannot be changed: an
upgrade that would exchange a running fleet's bundle under it is refused, see mach.keepSelector. */}}
{{- define "mach.selector" -}}
app.kubernetes.io/name: mach-fleet
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .bundle }}
mach-fleet/bundle: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "mach.fleetSelector" -}}
{{ include "mach.selector" . }}
mach-fleet/version: {{ (index .root.Values.bundles .bundle).version | trunc 12 | quote }}
{{- end -}}

{{- define "mach.shardSelector" -}}
{{ include "mach.fleetSelector" . }}
mach-fleet/shard: {{ .shard.index | quote }}
mach-fleet/repetitions: {{ .shard.label | quote }}
{{- end -}}

{{/* Refuses another selector than that of the shard's running Deployment. The API server does so
too, but only once Services, budgets and policies have the new one. lookup finds nothing where there
is no cluster to ask (helm template). Takes root, bundle, shard. */}}
{{- define "mach.keepSelector" -}}
{{- $context := . -}}
{{- $wanted := include "mach.shardSelector" . | fromYaml -}}
{{- $live := lookup "apps/v1" "Deployment" .root.Release.Namespace .shard.name | default dict -}}
{{- range $label, $value := dig "spec" "selector" "matchLabels" dict $live -}}
  {{- if ne $value (get $wanted $label) -}}
  {{- fail (printf "bundles.%s: Deployment %s runs with %s %s, which cannot become %q: another version needs an entry of its own, another shard.repetitionsPerShard a release of its own" $context.bundle $context.shard.name $label $value (get $wanted $label)) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{- define "mach.labels" -}}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: mach-fleet
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* The shards of a bundle as JSON: {"shards": [{index, name, repetitions, label}]}. */}}
{{- define "mach.shards" -}}
{{- $root := .root -}}
{{- $bundle := .bundle -}}
{{- $total := int (index $root.Values.bundles $bundle).repetitions -}}
{{- $size := int $root.Values.shard.repetitionsPerShard -}}
{{- $shards := list -}}
{{- range $index := until (div (add $total (sub $size 1)) $size | int) -}}
  {{- $first := mul $index $size | int -}}
  {{- $last := min (add $first (sub $size 1)) (sub $total 1) | int -}}
  {{- $repetitions := list -}}
  {{- range untilStep $first (int (add $last 1)) 1 -}}
    {{- $repetitions = append $repetitions (toString .) -}}
  {{- end -}}
  {{- $label := ternary (toString $first) (printf "%d-%d" $first $last) (eq $first $last) -}}
  {{- $name := printf "%s-%s-shard-%03d" (include "mach.fullname" (dict "root" $root)) $bundle $index -}}
  {{- $shards = append $shards (dict "index" (toString $index) "name" $name "repetitions" (join "," $repetitions) "label" $label) -}}
{{- end -}}
{{- dict "shards" $shards | toJson -}}
{{- end -}}

{{/* Names of objects of one bundle's aggregators. */}}
{{- define "mach.aggregatorName" -}}
{{ printf "%s-%s-aggregator" (include "mach.fullname" .) .bundle }}
{{- end -}}

{{/* A setting of one shard: its override or what all have. Takes root, shard, key, default. */}}
{{- define "mach.shardSetting" -}}
{{- $overrides := index .root.Values.shard.overrides .shard.index | default dict -}}
{{- if hasKey $overrides .key }}{{ index $overrides .key }}{{ else }}{{ .default }}{{ end -}}
{{- end -}}

{{/* Fewest replicas of one shard. */}}
{{- define "mach.shardMinimum" -}}
{{- $shard := .root.Values.shard -}}
{{- if eq $shard.autoscaling.mode "none" -}}
{{- include "mach.shardSetting" (merge (dict "key" "replicas" "default" $shard.replicas) .) -}}
{{- else -}}
{{- include "mach.shardSetting" (merge (dict "key" "minReplicas" "default" $shard.autoscaling.minReplicas) .) -}}
{{- end -}}
{{- end -}}

{{/* What contradicts itself and a schema cannot see. Takes root. */}}
{{- define "mach.check" -}}
{{- $values := .root.Values -}}
{{- if and $values.bundles (not (hasKey $values.bundles $values.active)) -}}
{{- fail (printf "active: %q is none of the bundles %s" $values.active (keys $values.bundles | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if and $values.bundles (eq (empty $values.store.url) (empty $values.store.volume)) -}}
{{- fail "store: give one of url and volume" -}}
{{- end -}}
{{- range $index, $_ := $values.shard.overrides -}}
  {{- range $name, $bundle := $values.bundles -}}
    {{- if ge (mul (int $index) (int $values.shard.repetitionsPerShard)) (int $bundle.repetitions) -}}
    {{- fail (printf "shard.overrides: there is no shard %s of bundle %s" $index $name) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- with $values.tls -}}
  {{- if and .clients.clientCaSecret (not .clients.secret) -}}{{- fail "tls.clients.clientCaSecret needs tls.clients.secret as well" -}}{{- end -}}
  {{- range $name, $value := omit .shards "secret" -}}
    {{- if and $value (not $values.tls.shards.secret) -}}{{- fail (printf "tls.shards.%s needs tls.shards.secret as well" $name) -}}{{- end -}}
  {{- end -}}
  {{- if and .shards.clientCaSecret (not .shards.clientSecret) -}}{{- fail "tls.shards.clientCaSecret needs tls.shards.clientSecret as well" -}}{{- end -}}
{{- end -}}
{{- if $values.training.enabled -}}
  {{- if not $values.training.run -}}{{- fail "training.run: give the run a name" -}}{{- end -}}
  {{- if not $values.training.interactions -}}{{- fail "training.interactions: name at least one file" -}}{{- end -}}
  {{- if not $values.training.workVolume -}}{{- fail "training.workVolume: name a volume that all the pods share" -}}{{- end -}}
{{- end -}}
{{- end -}}
