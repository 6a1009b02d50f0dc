{{/* What a JSON schema cannot say. Each fault names the value and what to do. */}}
{{- define "llama31.validate" -}}
{{- if gt (len .Release.Name) 40 }}
{{- fail (printf "the release name %q is too long: KubeRay's names of pods and services leave room for 40 characters" .Release.Name) }}
{{- end }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) }}
{{- fail (printf "the release name %q does not suit KubeRay: a letter first, then letters, digits and -" .Release.Name) }}
{{- end }}
{{- include "llama31.validateAccess" . }}
{{- include "llama31.validateWeights" . }}
{{- include "llama31.validateIngress" . }}
{{- include "llama31.validateEngine" . }}
{{- include "llama31.validateGateway" . }}
{{- include "llama31.validateGcs" . }}
{{- include "llama31.validateRedisVolume" . }}
{{- include "llama31.validateSecrets" . }}
{{- end }}

{{- define "llama31.validateAccess" -}}
{{- with .Values.access }}
{{- if not (or .tenantsSecret (include "llama31.isAllowed" (list $ "serve_without_keys"))) }}
{{- fail "access.tenantsSecret is empty: name a Secret with tenants.yaml (llama31 keys new), or set config.ingress.serve_without_keys=true to let everybody in" }}
{{- end }}
{{- if not (or .tlsSecret (include "llama31.isAllowed" (list $ "serve_without_tls"))) }}
{{- fail "access.tlsSecret is empty: name a Secret of type kubernetes.io/tls, or set config.ingress.serve_without_tls=true if TLS ends at a gateway" }}
{{- end }}
{{- if and .clientCertificates (not .tlsSecret) }}
{{- fail "access.clientCertificates needs access.tlsSecret, with ca.crt in it" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "llama31.validateWeights" -}}
{{- with .Values.weights }}
{{- if and .hostPath .claim }}
{{- fail "weights.hostPath and weights.claim are both set: choose one (--set weights.hostPath=)" }}
{{- end }}
{{- if and .source (not (or .hostPath .claim)) }}
{{- fail "weights.source is set but there is nowhere to keep it: set weights.hostPath or weights.claim" }}
{{- end }}
{{- if and .source .hostPath (not $.Values.engine.nodeSelector) (not $.Values.engine.affinity.nodeAffinity) }}
{{- fail "weights.source fills weights.hostPath of the engines' nodes: set engine.nodeSelector or engine.affinity.nodeAffinity, or the hook fills any node" }}
{{- end }}
{{- if and (eq (include "llama31.device" $) "cuda") (eq (dig "engine" "weights" "checkpoint" $.Values.config) "checkpoint") (not (or .hostPath .claim)) }}
{{- fail (printf "config.model %s needs its weights: set weights.hostPath or weights.claim, and weights.source to have them fetched" $.Values.config.model) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "llama31.validateIngress" -}}
{{- $needed := mulf 0.5 .Values.ingress.processesPerPod | ceil }}
{{- if lt (float64 .Values.ingress.cpus) $needed }}
{{- fail (printf "ingress.cpus is %v: the %v ingress processes of a pod (ingress.processesPerPod) ask Ray for 0.5 each: %v" .Values.ingress.cpus .Values.ingress.processesPerPod $needed) }}
{{- end }}
{{- end }}

{{- define "llama31.validateEngine" -}}
{{- $plan := .Values.config.plan | default "tp1" }}
{{- if not (regexMatch "^(tp[1-9][0-9]*)?(pp[1-9][0-9]*)?$" $plan) }}
{{- fail (printf "config.plan is %q: write tp8, pp2 or tp8pp2" $plan) }}
{{- end }}
{{- $ranks := include "llama31.tp" . | int }}
{{- $needed := addf (dig "engine" "replica_cpus" 1.0 .Values.config) (mulf (dig "engine" "rank_cpus" 1.0 .Values.config) $ranks) | ceil }}
{{- if lt (float64 .Values.engine.cpus) $needed }}
{{- fail (printf "engine.cpus is %v: the replica and the %d ranks of a pod ask Ray for %v (config.engine.replica_cpus, rank_cpus)" .Values.engine.cpus $ranks $needed) }}
{{- end }}
{{- $gpus := dig "hardware" "gpus_per_node" 8 .Values.config | int }}
{{- if gt $ranks $gpus }}
{{- fail (printf "config.plan %s puts %d ranks on a node of config.hardware.gpus_per_node=%d GPUs: use more pipeline stages" $plan $ranks $gpus) }}
{{- end }}
{{- end }}

{{- define "llama31.validateGateway" -}}
{{- $tls := .Values.access.tlsSecret }}
{{- with .Values.gateway }}
{{- if .enabled }}
{{- if not (or .parents .className) }}
{{- fail "gateway.enabled needs gateway.parents (a Gateway that is there) or gateway.className (to make one)" }}
{{- end }}
{{- if and .parents .className }}
{{- fail "gateway.parents and gateway.className are both set: attach to a Gateway or make one" }}
{{- end }}
{{- if and .className (not .tlsSecret) }}
{{- fail "gateway.className makes an HTTPS listener: set gateway.tlsSecret to its certificate" }}
{{- end }}
{{- if not .grpcHostname }}
{{- fail "gateway.enabled needs gateway.grpcHostname, the name that gRPC clients call" }}
{{- end }}
{{- if eq .grpcHostname .httpHostname }}
{{- fail "gateway.grpcHostname and gateway.httpHostname are the same: of two routes of different kinds for one name a Gateway takes only one" }}
{{- end }}
{{- if and $tls (not .backendCa) }}
{{- fail "the ingress pods speak TLS (access.tlsSecret): set gateway.backendCa to a ConfigMap with the ca.crt that the gateway shall trust; their certificate must hold gateway.grpcHostname" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "llama31.validateGcs" -}}
{{- if eq .Values.gcs.store "external" }}
{{- if not .Values.gcs.address }}
{{- fail "gcs.store is external: set gcs.address to the Redis, such as redis.data.svc:6379" }}
{{- end }}
{{- if not .Values.secret.existing }}
{{- fail "gcs.store is external: set secret.existing to a Secret with auth_token, cluster_token and the redis_password of that Redis" }}
{{- end }}
{{- end }}
{{- end }}

{{/* A StatefulSet never changes its volumes, and the API server says so in words about fields. helm template sees none. */}}
{{- define "llama31.validateRedisVolume" -}}
{{- $redis := lookup "apps/v1" "StatefulSet" .Release.Namespace (printf "%s-redis" .Release.Name) }}
{{- if and $redis (eq .Values.gcs.store "redis") }}
{{- $volume := (index $redis.spec.volumeClaimTemplates 0).spec }}
{{- $has := dict "gcs.storageClass" ($volume.storageClassName | default "") "gcs.storage" $volume.resources.requests.storage }}
{{- $asked := dict "gcs.storageClass" .Values.gcs.storageClass "gcs.storage" .Values.gcs.storage }}
{{- range $value := list "gcs.storageClass" "gcs.storage" }}
{{- $old := get $has $value }}{{ $new := get $asked $value }}
{{- if and (ne $old $new) (ne (include "llama31.kibibytes" $old) (include "llama31.kibibytes" $new)) }}
{{- fail (printf "%s is %q, but the volume of %s-redis was made with %q, and Kubernetes changes it in no upgrade: keep it, or do as docs/install.md says under Upgrades" $value $new $.Release.Name $old) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Of an amount, since the API server writes 1024Mi as 1Gi; anything else as it is. */}}
{{- define "llama31.kibibytes" -}}
{{- if regexMatch "^[0-9]+[KMGT]i$" . }}
{{- mul (regexFind "^[0-9]+" . | int64) (get (dict "K" 1 "M" 1024 "G" 1048576 "T" 1073741824) (trimSuffix "i" . | regexFind "[KMGT]$")) }}
{{- else }}{{ . }}{{ end }}
{{- end }}

{{/* Pods would wait for a Secret without a word. Looked for at the first install only, in a namespace that is there;
     helm template sees no cluster. */}}
{{- define "llama31.validateSecrets" -}}
{{- if and .Release.IsInstall (lookup "v1" "Namespace" "" .Release.Namespace) }}
{{- $named := dict
  "access.tenantsSecret" .Values.access.tenantsSecret
  "access.tlsSecret" .Values.access.tlsSecret
  "secret.existing" .Values.secret.existing
  "test.keySecret" .Values.test.keySecret
  "test.certificateSecret" .Values.test.certificateSecret
  "weights.secret" (ternary .Values.weights.secret "" (ne .Values.weights.source "")) }}
{{- range $value, $name := $named }}
{{- if and $name (not (lookup "v1" "Secret" $.Release.Namespace $name)) }}
{{- fail (printf "%s: there is no Secret %s in namespace %s; make it first (docs/install.md)" $value $name $.Release.Namespace) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
