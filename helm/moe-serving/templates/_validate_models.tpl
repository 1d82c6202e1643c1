{{/* Checks of models[] that the schema cannot express. Each failure names the value to change. */}}
{{- define "moe-serving.validateModels" -}}
{{- $v := .Values -}}
{{- if not $v.models -}}
{{- range $v.pools -}}
{{- if hasKey . "minGroups" -}}
{{- fail (printf "pools.%s.minGroups: only for pools of models: set autoscaler.minGroups" .name) -}}
{{- end -}}
{{- end -}}
{{- if or $v.autoscaler.maxGpus $v.autoscaler.maxNodes -}}
{{- fail "autoscaler.maxGpus and maxNodes limit the pools of several models together: for one pool, set autoscaler.maxGroups" -}}
{{- end -}}
{{- else -}}
{{- if or (ne $v.model.name "pocket-r1") $v.model.path $v.model.download.enabled $v.model.stream.url -}}
{{- fail "model: cannot be combined with models: move it to an entry of models" -}}
{{- end -}}
{{- if or (gt (len $v.pools) 1) (ne (first $v.pools).name "cpu") -}}
{{- fail "pools: cannot be combined with models: set models[].pools" -}}
{{- end -}}
{{- if or $v.autoscaler.pool $v.autoscaler.cluster $v.autoscaler.maxGroups -}}
{{- fail "autoscaler: pool, cluster and maxGroups are for one pool; with models, every pool is scaled: set maxGroups (and minGroups) of models[].pools[]" -}}
{{- end -}}
{{- $names := list -}}
{{- $slugs := dict -}}
{{- $mounts := dict -}}
{{- range $number, $model := $v.models -}}
{{- $where := printf "models[%d]" $number -}}
{{- range prepend (default list $model.aliases) $model.name -}}
{{- if has . $names -}}
{{- fail (printf "%s: %q is the name or an alias of another model: names must differ" $where .) -}}
{{- end -}}
{{- $names = append $names . -}}
{{- end -}}
{{- if eq (default "bundled" $model.volume.type) "bundled" -}}
{{- fail (printf "%s.volume.type: set claim or hostPath: the images contain only pocket-r1" $where) -}}
{{- end -}}
{{- if (default dict $model.download).enabled -}}
{{- fail (printf "%s.download: not available with several models: download the weights to the volume before (moe-serving weights fetch)" $where) -}}
{{- end -}}
{{- $mount := default $v.model.volume.mountPath $model.volume.mountPath -}}
{{- $volume := toJson (omit $model.volume "mountPath") -}}
{{- if and (hasKey $mounts $mount) (ne (get $mounts $mount) $volume) -}}
{{- fail (printf "%s.volume.mountPath: another model has a different volume at %s, and routers mount both: set a different mountPath, and path below it" $where $mount) -}}
{{- end -}}
{{- $_ := set $mounts $mount $volume -}}
{{- range $model.pools -}}
{{- $slug := include "moe-serving.slug" (printf "%s-%s" $model.name .name) -}}
{{- $place := printf "%s.pools.%s" $where .name -}}
{{- if hasKey $slugs $slug -}}
{{- fail (printf "%s: the objects of this pool would have the same names as those of %s: rename the model or the pool" $place (get $slugs $slug)) -}}
{{- end -}}
{{- $_ := set $slugs $slug $place -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Checks of the model of one unit. */}}
{{- define "moe-serving.validateModel" -}}
{{- $v := .Values -}}
{{- $where := "model" -}}
{{- with $v.unit -}}{{- $where = printf "models[%d]" (int .number) -}}{{- end -}}
{{- if and (eq $v.model.volume.type "claim") (not $v.model.volume.claimName) -}}
{{- fail (printf "%s.volume: type claim requires claimName" $where) -}}
{{- end -}}
{{- if and (eq $v.model.volume.type "hostPath") (not $v.model.volume.hostPath) -}}
{{- fail (printf "%s.volume: type hostPath requires hostPath" $where) -}}
{{- end -}}
{{- if and (ne $v.model.volume.type "bundled") (not $v.model.path) -}}
{{- fail (printf "%s.path: set the model's directory under model.volume.mountPath" $where) -}}
{{- end -}}
{{- if and $v.model.path (eq $v.model.volume.type "bundled") -}}
{{- fail (printf "%s.path: the images contain only pocket-r1: set model.volume.type to claim or hostPath" $where) -}}
{{- end -}}
{{- if and $v.model.path (not (hasPrefix (trimSuffix "/" $v.model.volume.mountPath) $v.model.path)) -}}
{{- fail (printf "%s.path: %s is not under %s.volume.mountPath %s" $where $v.model.path $where $v.model.volume.mountPath) -}}
{{- end -}}

{{- $mount := printf "%s/" (trimSuffix "/" $v.model.volume.mountPath) -}}
{{- range $number, $adapter := $v.model.adapters -}}
{{- if eq $v.model.volume.type "bundled" -}}
{{- fail (printf "%s.adapters: adapters come from a volume: set model.volume.type to claim or hostPath" $where) -}}
{{- end -}}
{{- if not (hasPrefix $mount $adapter.path) -}}
{{- fail (printf "%s.adapters[%d].path: %s is not under %s.volume.mountPath %s" $where $number $adapter.path $where $v.model.volume.mountPath) -}}
{{- end -}}
{{- end -}}
{{- with (default dict $v.model.lora).folder -}}
{{- if not (hasPrefix $mount (printf "%s/" .)) -}}
{{- fail (printf "%s.lora.folder: %s is not under %s.volume.mountPath %s" $where . $where $v.model.volume.mountPath) -}}
{{- end -}}
{{- end -}}

{{- if $v.model.stream.url -}}
{{- if eq $v.model.volume.type "bundled" -}}
{{- fail (printf "%s.stream: the configuration and the tokenizer come from a volume: set model.volume.type to claim or hostPath, and model.path" $where) -}}
{{- end -}}
{{- if $v.model.download.enabled -}}
{{- fail (printf "%s.stream: cannot be combined with model.download, which downloads the weights to the volume" $where) -}}
{{- end -}}
{{- range list "load_format" "model_weights" "model_loader_extra_config" -}}
{{- if hasKey (default dict $v.engine.args) . -}}
{{- fail (printf "engine.args.%s is computed from model.stream: remove it" .) -}}
{{- end -}}
{{- end -}}
{{- else if or $v.model.stream.existingSecret $v.model.stream.serviceAccount -}}
{{- fail (printf "%s.stream: existingSecret and serviceAccount require url" $where) -}}
{{- end -}}
{{- if $v.model.download.enabled -}}
{{- if eq $v.model.volume.type "bundled" -}}
{{- fail (printf "%s.download: downloads to a claim or to a directory on each node: set model.volume.type to claim or hostPath" $where) -}}
{{- end -}}
{{- if or (not $v.model.download.repository) (not $v.model.download.revision) -}}
{{- fail (printf "%s.download: set repository and revision (a commit)" $where) -}}
{{- end -}}
{{- end -}}
{{- end -}}
