{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{- define "tandem.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "tandem.operatorName" -}}{{ include "tandem.fullname" . }}-operator{{- end -}}
{{- define "tandem.etcdName" -}}{{ include "tandem.fullname" . }}-etcd{{- end -}}

{{- define "tandem.selector" -}}
app.kubernetes.io/name: {{ .context.Chart.Name }}
app.kubernetes.io/instance: {{ .context.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "tandem.labels" -}}
{{ include "tandem.selector" . }}
app.kubernetes.io/version: {{ .context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .context.Release.Service }}
app.kubernetes.io/part-of: tandem
helm.sh/chart: {{ printf "%s-%s" .context.Chart.Name .context.Chart.Version }}
{{- with .context.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Registry, name, tag or digest of an image. */}}
{{- define "tandem.image" -}}
{{- $tag := .image.tag | default .context.Chart.AppVersion -}}
{{ .registry }}/{{ .image.name }}{{ if .image.digest }}@{{ .image.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end -}}

{{- define "tandem.etcdSecretName" -}}
{{- .Values.etcd.auth.existingSecret | default (printf "%s-root" (include "tandem.etcdName" .)) -}}
{{- end -}}

{{- define "tandem.etcdTlsSecretName" -}}
{{- .Values.etcd.tls.existingSecret | default (printf "%s-tls" (include "tandem.etcdName" .)) -}}
{{- end -}}

{{/* host:port of every member, as JSON. */}}
{{- define "tandem.etcdEndpoints" -}}
{{- if .Values.etcd.bundled -}}
{{- $name := include "tandem.etcdName" . -}}
{{- $endpoints := list -}}
{{- range $index := until (int .Values.etcd.replicas) -}}
{{- $endpoints = append $endpoints (printf "%s-%d.%s.%s.svc:2379" $name $index $name $.Release.Namespace) -}}
{{- end -}}
{{- toJson $endpoints -}}
{{- else -}}
{{- if not .Values.etcd.endpoints -}}
{{- fail "etcd.endpoints must name at least one host:port when etcd.bundled is false" -}}
{{- end -}}
{{- toJson .Values.etcd.endpoints -}}
{{- end -}}
{{- end -}}

{{- define "tandem.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "tandem.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "tandem.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}
