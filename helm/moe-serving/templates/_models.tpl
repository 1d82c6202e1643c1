{{/* Several models in one release. Each pool of each model is a unit: what a release with one model
and one pool renders for its ranks, as a separate RayService. Templates of ranks get a unit's
root instead of the release's: its values have the unit's model, engine, parallelism and pool, and
"unit" with the names. Routers, Services and NetworkPolicies exist once.

Without models there is one unit, the release itself. */}}

{{/* Put the roots of all units into "out", as a list under "units": (dict "root" $ "out" (dict)). */}}
{{- define "moe-serving.units" -}}
{{- $root := .root -}}
{{- $units := list -}}
{{- if $root.Values.models -}}
{{- range $number, $model := $root.Values.models -}}
{{- range $pool := $model.pools -}}
{{- $slug := include "moe-serving.slug" (printf "%s-%s" $model.name $pool.name) -}}
{{- $values := deepCopy $root.Values -}}
{{- $_ := set $values "model" (mustMergeOverwrite (deepCopy $root.Values.model) (omit (deepCopy $model) "aliases" "engine" "parallelism" "pools")) -}}
{{- range list "engine" "parallelism" -}}
{{- $_ := set $values . (mustMergeOverwrite (deepCopy (get $root.Values .)) (deepCopy (default dict (get $model .)))) -}}
{{- end -}}
{{- $_ := set $values "pools" (list (merge (dict "name" $slug) (omit (deepCopy $pool) "minGroups"))) -}}
{{- $_ := set $values "models" list -}}
{{- $_ := set $values "unit" (dict "slug" $slug "model" $model.name "pool" $pool.name "number" $number "aliases" (default list $model.aliases) "minGroups" (hasKey $pool "minGroups" | ternary $pool.minGroups $root.Values.autoscaler.minGroups)) -}}
{{- $units = append $units (dict "Values" $values "Release" $root.Release "Chart" $root.Chart "Capabilities" $root.Capabilities "Template" $root.Template "Files" $root.Files) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- $units = list $root -}}
{{- end -}}
{{- $_ := set .out "units" $units -}}
{{- end -}}

{{/* A name as a part of object names, as for a pool: lower case, at most 30 characters. */}}
{{- define "moe-serving.slug" -}}
{{- $slug := regexReplaceAll "[^a-z0-9]+" (lower .) "-" | trimAll "-" -}}
{{- if not (regexMatch "^[a-z]" $slug) -}}{{- $slug = printf "m-%s" $slug -}}{{- end -}}
{{- if gt (len $slug) 30 -}}
{{- $slug = printf "%s-%s" (trunc 21 $slug | trimSuffix "-") (sha256sum . | trunc 8) -}}
{{- end -}}
{{- $slug -}}
{{- end -}}

{{/* Name of a unit's RayService, at most 40 characters. */}}
{{- define "moe-serving.serviceName" -}}
{{- $full := include "moe-serving.fullname" . -}}
{{- with .Values.unit -}}
{{- $full = printf "%s-%s" $full .slug -}}
{{- if gt (len $full) 40 -}}
{{- $full = printf "%s-%s" (trunc 31 $full | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- end -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{/* Name of a pool's Ray Serve application: (dict "root" $ "name" NAME). Routers and the autoscaler
compute the same name from the settings. */}}
{{- define "moe-serving.appName" -}}
{{- $full := include "moe-serving.fullname" .root -}}
{{- $unit := .root.Values.unit -}}
{{- if $unit -}}
{{- printf "%s-%s" $full (regexReplaceAll "[^A-Za-z0-9_.-]" (printf "%s-%s" $unit.model $unit.pool) "-") -}}
{{- else -}}
{{- printf "%s-%s" $full .name -}}
{{- end -}}
{{- end -}}

{{/* Volumes and mounts of all models for the routers, as YAML lists: (dict "root" $ "of" "volume").
Models on the same volume and mount path share it. */}}
{{- define "moe-serving.routerModels" -}}
{{- $out := dict -}}
{{- include "moe-serving.units" (dict "root" .root "out" $out) -}}
{{- $seen := list -}}
{{- $result := list -}}
{{- range $unit := $out.units -}}
{{- $key := toJson (omit $unit.Values.model.volume "subPath") -}}
{{- $at := toJson $unit.Values.model.volume -}}
{{- $name := printf "model-%s" (sha256sum $key | trunc 8) -}}
{{- if eq $.of "volume" -}}
{{- if not (has $key $seen) -}}
{{- range include "moe-serving.modelVolume" $unit | fromYamlArray -}}
{{- $result = append $result (set . "name" $name) -}}
{{- end -}}
{{- end -}}
{{- $seen = append $seen $key -}}
{{- else -}}
{{- if not (has $at $seen) -}}
{{- range include "moe-serving.modelMount" $unit | fromYamlArray -}}
{{- $result = append $result (set . "name" $name) -}}
{{- end -}}
{{- end -}}
{{- $seen = append $seen $at -}}
{{- end -}}
{{- end -}}
{{- toYaml $result -}}
{{- end -}}

{{/* models[] of the settings files, as JSON: (dict "root" $ "for" "router" or "autoscaler"). */}}
{{- define "moe-serving.modelsSettings" -}}
{{- $for := .for -}}
{{- $out := dict -}}
{{- include "moe-serving.units" (dict "root" .root "out" $out) -}}
{{- $models := list -}}
{{- range $number, $model := .root.Values.models -}}
{{- $pools := list -}}
{{- $adapters := dict -}}
{{- range $unit := $out.units -}}
{{- $u := $unit.Values.unit -}}
{{- if eq (int $u.number) $number -}}
{{- $adapters = include "moe-serving.adapterSettings" $unit | fromJson -}}
{{- $pool := first (include "moe-serving.pools" $unit | fromJsonArray) -}}
{{- $ranks := include "moe-serving.rankSettings" (dict "root" $unit "pool" $pool) | fromJson -}}
{{- $entry := dict "name" $u.pool "group" (omit $ranks.group "pool") -}}
{{- if eq $for "router" -}}
{{- $_ := set $entry "engine" $ranks.engine -}}
{{- else -}}
{{- $_ := set $entry "group" (pick $ranks.group "data_parallel" "tensor_parallel") -}}
{{- $_ := set $entry "autoscaler" (include "moe-serving.unitScaling" $unit | fromJson) -}}
{{- end -}}
{{- $pools = append $pools $entry -}}
{{- end -}}
{{- end -}}
{{- $entry := dict "name" $model.name "path" $model.path "pools" $pools -}}
{{- if eq $for "router" -}}
{{- $_ := set $entry "aliases" (default list $model.aliases) -}}
{{- $entry = merge $entry $adapters -}}
{{- $whole := mustMergeOverwrite (deepCopy $.root.Values.model) (pick (deepCopy $model) "reasoningParser" "toolParser") -}}
{{- $_ := set $entry "reasoning_parser" (hasKey $model "reasoningParser" | ternary $model.reasoningParser $whole.reasoningParser) -}}
{{- $_ := set $entry "tool_parser" (hasKey $model "toolParser" | ternary $model.toolParser $whole.toolParser) -}}
{{- end -}}
{{- $models = append $models $entry -}}
{{- end -}}
{{- $models | toJson -}}
{{- end -}}

{{/* LoRA adapters of one unit's model, as JSON: adapters and lora of its settings. Empty: none. */}}
{{- define "moe-serving.adapterSettings" -}}
{{- $lora := default dict .Values.model.lora -}}
{{- $result := dict -}}
{{- if or .Values.model.adapters $lora.folder -}}
{{- $own := dict "slots" (int (default 4 $lora.slots)) "max_rank" (int (default 16 $lora.maxRank)) "base_names" (default list $lora.baseNames) -}}
{{- with $lora.folder }}{{- $_ := set $own "folder" . }}{{- end -}}
{{- $result = dict "adapters" (default list .Values.model.adapters) "lora" $own -}}
{{- end -}}
{{- $result | toJson -}}
{{- end -}}

{{/* The autoscaler's settings of one unit, as JSON. */}}
{{- define "moe-serving.unitScaling" -}}
{{- $pool := include "moe-serving.scaledPool" . | fromJson -}}
{{- $service := include "moe-serving.serviceName" . -}}
{{- dict "min_groups" (int .Values.unit.minGroups) "max_groups" (int $pool.maxGroups)
  "gpus_per_group" (mul $pool.podsPerGroup $pool.gpusPerPod)
  "dashboard_url" (printf "http://%s-head-svc.%s.svc:8265" $service .Release.Namespace)
  "kubernetes" (dict "service" $service "worker_group" $pool.name
    "workers_per_group" (int $pool.podsPerGroup)
    "disruption_budget" (include "moe-serving.scaledBudget" .)) | toJson -}}
{{- end -}}
