{{/* The RayService of a unit. */}}
{{- define "moe-serving.rayServiceObject" -}}
{{- $spec := include "moe-serving.rayService" . | fromYaml }}
{{- with $spec.Error }}
{{- fail (printf "the RayService is not valid YAML: %s" .) }}
{{- end }}
{{- include "moe-serving.normal" (dict "node" $spec) }}
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: {{ include "moe-serving.serviceName" . | quote }}
  {{- include "moe-serving.metadata" (merge (pick .Values.scheduling "labels" "annotations") (dict "root" $ "component" "ranks")) | nindent 2 }}
spec:
  {{- toYaml $spec | nindent 2 }}
{{ end -}}

{{/* The RayService spec before conversion to the operator's form. */}}
{{- define "moe-serving.rayService" -}}
{{- $s := include "moe-serving.security" . | fromJson }}
{{- $applications := list }}
{{- $pools := include "moe-serving.pools" . | fromJsonArray }}
{{- range $pools }}
{{- $pool := include "moe-serving.pool" (dict "root" $ "pool" .) | fromJson }}
{{- $settings := include "moe-serving.rankSettings" (dict "root" $ "pool" .) | fromJson }}
{{- $applications = append $applications (dict
  "name" $settings.ray.app_name
  "import_path" "serving.engine.serve_app:build"
  "route_prefix" (printf "/%s" $settings.ray.app_name)
  "external_scaler_enabled" true
  "args" (dict "settings" $settings)
  "deployments" (list (dict "name" "ranks" "num_replicas" (int $pool.ranks)))) }}
{{- end }}
{{- $gcs := .Values.ray.gcsFaultTolerance }}
excludeHeadPodFromServeSvc: true
rayClusterDeletionDelaySeconds: {{ int64 .Values.ray.deletionDelaySeconds }}
upgradeStrategy: {type: {{ .Values.ray.upgradeStrategy | quote }}}
# Only num_replicas changes in place. Any other change also changes an annotation of the pool's
# pods, so KubeRay starts a second cluster. A pool appended to the list leaves the head and the
# other pools unchanged: KubeRay adds it to the running cluster.
serveConfigV2: |
  {{- dict "proxy_location" "EveryNode" "http_options" (dict "host" "0.0.0.0" "port" 8000) "applications" $applications | toYaml | nindent 2 }}
rayClusterConfig:
  rayVersion: {{ .Values.ray.version | quote }}
  {{- if $s.rayAuth }}
  authOptions:
    mode: token
    {{- with $s.rayToken }}
    secretName: {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- if include "moe-serving.gcsFaultTolerance" . }}
  gcsFaultToleranceOptions:
    redisAddress: {{ $gcs.redisAddress | quote }}
    {{- if $gcs.existingSecret }}
    redisPassword:
      valueFrom:
        secretKeyRef: {name: {{ $gcs.existingSecret | quote }}, key: {{ $gcs.secretKey | quote }}}
    {{- end }}
  {{- end }}
  headGroupSpec:
    rayStartParams:
      # No ranks on the head: it must outlive them.
      num-cpus: "0"
      num-gpus: "0"
      dashboard-host: 0.0.0.0
      # The object store is not used; by default Ray would reserve 30 % of the memory for it.
      object-store-memory: "100000000"
    template:
      metadata:
        {{- $labels := dict }}
        {{- with .Values.unit }}{{ $labels = dict "moe-serving/pool" .slug }}{{ end }}
        {{- include "moe-serving.podMetadata" (dict "root" $ "component" "ray-head" "labels" $labels) | nindent 8 }}
      spec:
        automountServiceAccountToken: false
        enableServiceLinks: false
        {{- include "moe-serving.pullSecrets" . | nindent 8 }}
        securityContext:
          {{- include "moe-serving.podSecurity" . | nindent 10 }}
        {{- include "moe-serving.dns" (dict "root" $ "hostNetwork" false) | nindent 8 }}
        {{- include "moe-serving.schedulerName" . | nindent 8 }}
        {{- with .Values.ray.head.priorityClassName }}
        priorityClassName: {{ . | quote }}
        {{- end }}
        {{- with .Values.ray.head.nodeSelector }}
        nodeSelector:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- with .Values.ray.head.tolerations }}
        tolerations:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- with .Values.ray.head.affinity }}
        affinity:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        containers:
          - name: ray-head
            image: {{ include "moe-serving.image" (dict "root" $ "image" .Values.image.engine) | quote }}
            imagePullPolicy: {{ .Values.image.engine.pullPolicy | quote }}
            securityContext:
              allowPrivilegeEscalation: false
              readOnlyRootFilesystem: {{ .Values.security.readOnlyRanks }}
              runAsNonRoot: true
              capabilities: {drop: [ALL]}
            env:
              {{- include "moe-serving.rayEnvironment" . | nindent 14 }}
            ports:
              - {name: gcs, containerPort: 6379}
              - {name: dashboard, containerPort: 8265}
              - {name: client, containerPort: 10001}
              - {name: serve, containerPort: 8000}
              - {name: metrics, containerPort: 8080}
            resources:
              {{- toYaml .Values.ray.head.resources | nindent 14 }}
            volumeMounts:
              - {name: tmp, mountPath: /tmp}
              - {name: home, mountPath: /home/serving}
              {{- include "moe-serving.headModelMount" . | nindent 14 }}
        volumes:
          - {name: tmp, emptyDir: {}}
          - {name: home, emptyDir: {}}
          {{- include "moe-serving.headModelVolume" . | nindent 10 }}
  workerGroupSpecs:
    {{- range $pools }}
    {{- include "moe-serving.workerGroup" (dict "root" $ "pool" . "security" $s) | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* "true" if Ray's control data is stored in Redis, which is the default if an address is set;
otherwise empty. */}}
{{- define "moe-serving.gcsFaultTolerance" -}}
{{- $gcs := .Values.ray.gcsFaultTolerance -}}
{{- if kindIs "bool" $gcs.enabled | ternary $gcs.enabled (ne $gcs.redisAddress "") -}}true{{- end -}}
{{- end -}}
