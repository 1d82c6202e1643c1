{{/* Environment of all Ray containers. */}}
{{- define "moe-serving.rayEnvironment" -}}
- {name: HOME, value: /home/serving}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_process_group_cleanup_enabled, value: "1"}
- {name: RAY_worker_niceness, value: "0"}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end -}}

{{/* One worker group, a pool's: (dict "root" $ "pool" POOL "checksum" C "security" S). A replica
is a pod; a group has several. */}}
{{- define "moe-serving.workerGroup" -}}
{{- $root := .root -}}
{{- $given := .pool -}}
{{- $s := .security -}}
{{- $pool := include "moe-serving.pool" (dict "root" $root "pool" $given) | fromJson -}}
{{- $who := dict "root" $root "component" "ranks" -}}
{{- $rdma := $given.rdma -}}
{{- $cpus := mulf $pool.ranksPerPod (addf 1 $pool.cpusPerRank) -}}
- groupName: {{ $pool.name }}
  replicas: {{ $pool.pods }}
  minReplicas: {{ $pool.pods }}
  maxReplicas: {{ mul $pool.maxGroups $pool.podsPerGroup }}
  rayStartParams:
    num-cpus: {{ ceil $cpus | int | quote }}
    num-gpus: {{ $pool.gpusPerPod | int | quote }}
    object-store-memory: "100000000"
    # As KubeRay's and Ray's own readers of it want it: JSON in quotes of its own.
    resources: {{ printf "\"{\\\"pool-%s\\\": 1}\"" $pool.name | squote }}
  template:
    metadata:
      labels:
        {{- include "moe-serving.podLabels" $who | nindent 8 }}
        moe-serving/pool: {{ $pool.name }}
      annotations:
        checksum/settings: {{ .checksum }}
        {{- if and $rdma $rdma.networks }}
        k8s.v1.cni.cncf.io/networks: {{ $rdma.networks | quote }}
        {{- end }}
    spec:
      {{- with $root.Values.model.stream.serviceAccount }}
      # The cloud's identity; the Kubernetes API's own token is not mounted all the same.
      serviceAccountName: {{ . }}
      {{- end }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- if and $rdma $rdma.hostNetwork }}
      hostNetwork: true
      dnsPolicy: ClusterFirstWithHostNet
      {{- end }}
      {{- include "moe-serving.pullSecrets" $root | nindent 6 }}
      securityContext:
        {{- include "moe-serving.podSecurity" $root | nindent 8 }}
      # The hook below, and then the time that Ray takes to stop.
      terminationGracePeriodSeconds: {{ add (int $root.Values.engine.drainTimeout) 45 }}
      {{- with $given.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- with $given.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- $selector := deepCopy (default (dict) $given.nodeSelector) }}
      {{- $tolerations := default (list) $given.tolerations }}
      {{- if $given.spot }}
      {{- $spot := dict "gke" (list "cloud.google.com/gke-spot" "true") "eks" (list "eks.amazonaws.com/capacityType" "SPOT") "aks" (list "kubernetes.azure.com/scalesetpriority" "spot") }}
      {{- with get $spot $root.Values.cloud }}
      {{- $_ := set $selector (first .) (last .) }}
      {{- $tolerations = append $tolerations (dict "key" (first .) "operator" "Equal" "value" (last .) "effect" "NoSchedule") }}
      {{- end }}
      {{- end }}
      {{- with $selector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $pool.gpu }}
      {{- $tolerations = append $tolerations (dict "key" (default "nvidia.com/gpu" $given.gpuResource) "operator" "Exists" "effect" "NoSchedule") }}
      {{- end }}
      {{- with $tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- $affinity := deepCopy (default (dict) $given.affinity) }}
      {{- with $given.topology }}
      {{- $term := dict "topologyKey" .key "labelSelector" (dict "matchLabels" (merge (dict "moe-serving/pool" $pool.name) (include "moe-serving.selector" $who | fromYaml))) }}
      {{- $together := dict }}
      {{- if .required }}
      {{- $_ := set $together "requiredDuringSchedulingIgnoredDuringExecution" (list $term) }}
      {{- else }}
      {{- $_ := set $together "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term)) }}
      {{- end }}
      {{- $_ := mustMergeOverwrite $affinity (dict "podAffinity" $together) }}
      {{- end }}
      {{- with $affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- include "moe-serving.waitForWeights" (dict "root" $root "image" $root.Values.image.engine) | nindent 6 }}
      containers:
        - name: ranks
          image: {{ include "moe-serving.image" (dict "root" $root "image" $root.Values.image.engine) }}
          imagePullPolicy: {{ $root.Values.image.engine.pullPolicy }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: {{ $root.Values.security.readOnlyRanks }}
            runAsNonRoot: true
            # Pinning memory for RDMA takes IPC_LOCK.
            capabilities: {drop: [ALL]{{ if $rdma }}, add: [IPC_LOCK]{{ end }}}
          env:
            {{- include "moe-serving.rayEnvironment" $root | nindent 12 }}
            {{- if and $rdma $rdma.hca }}
            - {name: NCCL_IB_HCA, value: {{ $rdma.hca | quote }}}
            - {name: NVSHMEM_HCA_LIST, value: {{ $rdma.hca | quote }}}
            {{- end }}
            {{- if and $rdma (has $root.Values.engine.allToAll (list "deepep_high_throughput" "deepep_low_latency")) }}
            - {name: NVSHMEM_IB_ENABLE_IBGDA, value: "1"}
            {{- end }}
            {{- range $key, $value := default (dict) $given.env }}
            - {name: {{ $key }}, value: {{ $value | quote }}}
            {{- end }}
          {{- with $root.Values.model.stream.existingSecret }}
          envFrom:
            - secretRef: {name: {{ . }}}
          {{- end }}
          lifecycle:
            preStop:
              # The ranks tell every router over their own links; Ray would end them without a word.
              exec: {command: [moe-serving, leave, --timeout, {{ .root.Values.engine.drainTimeout | quote }}]}
          ports:
            - {name: serve, containerPort: 8000}
            - {name: metrics, containerPort: 8080}
          resources:
            {{- $extra := dict }}
            {{- if $pool.gpu }}
            {{- $_ := set $extra (default "nvidia.com/gpu" $given.gpuResource) (int $pool.gpusPerPod) }}
            {{- end }}
            {{- with $rdma }}
            {{- $_ := set $extra .resource (int (default 1 .count)) }}
            {{- end }}
            {{- with $given.hugePages }}
            {{- $_ := set $extra (printf "hugepages-%s" .size) .amount }}
            {{- end }}
            requests:
              {{- merge (dict "cpu" $given.resources.cpu "memory" $given.resources.memory) $extra | toYaml | nindent 14 }}
            limits:
              {{- merge (dict "memory" $given.resources.memory) $extra | toYaml | nindent 14 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            - {name: home, mountPath: /home/serving}
            - {name: shared-memory, mountPath: /dev/shm}
            {{- if $given.hugePages }}
            - {name: huge-pages, mountPath: /dev/hugepages}
            {{- end }}
            {{- if $s.joinToken.existingSecret }}
            - {name: join, mountPath: /etc/moe-serving/join, readOnly: true}
            {{- end }}
            {{- if $s.joinTls.enabled }}
            - {name: join-tls, mountPath: /etc/moe-serving/join-tls, readOnly: true}
            {{- end }}
            {{- include "moe-serving.modelMount" $root | nindent 12 }}
      volumes:
        - {name: tmp, emptyDir: {}}
        - {name: home, emptyDir: {}}
        - name: shared-memory
          emptyDir: {medium: Memory, sizeLimit: {{ default (ternary "16Gi" "1Gi" $pool.gpu) $given.sharedMemory }}}
        {{- with $given.hugePages }}
        - {name: huge-pages, emptyDir: {medium: HugePages-{{ .size }}}}
        {{- end }}
        {{- if $s.joinToken.existingSecret }}
        - name: join
          secret:
            secretName: {{ $s.joinToken.existingSecret }}
            defaultMode: 0440
            items: [{key: {{ $root.Values.security.joinToken.secretKey }}, path: token}]
        {{- end }}
        {{- if $s.joinTls.enabled }}
        - name: join-tls
          secret:
            defaultMode: 0440
            {{- if $s.joinTls.rankSecret }}
            secretName: {{ $s.joinTls.rankSecret }}
            {{- else }}
            secretName: {{ $s.joinTls.existingSecret }}
            # Ranks trust the authority; the routers' key is none of their business.
            items: [{key: ca.crt, path: ca.crt}]
            {{- end }}
        {{- end }}
        {{- include "moe-serving.modelVolume" $root | nindent 8 }}
{{- end -}}
