{{/* The operator's name, and that of what belongs to it. Fixed: see values.yaml. */}}
{{- define "larder.operator" -}}larder-operator{{- end }}

{{/* What a Service and a Deployment find the operator's pods by. */}}
{{- define "larder.selector" -}}
app.kubernetes.io/name: larder
app.kubernetes.io/component: operator
{{- end }}

{{- define "larder.labels" -}}
{{ include "larder.selector" . }}
{{ include "larder.release" . }}
{{- end }}

{{/* Labels of every object: those of the release, and those that the values add. */}}
{{- define "larder.release" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The full name of an image: dict "image" VALUES "root" $. */}}
{{- define "larder.image" -}}
{{- with (.root.Values.global).imageRegistry | default .image.registry }}{{ . }}/{{ end -}}
{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The operator's service account. */}}
{{- define "larder.serviceAccount" -}}
{{ (.Values.serviceAccount).name | default (include "larder.operator" .) }}
{{- end }}

{{/* Ports of the operator's pods. Defaults are here, too, because values of an earlier chart (`--reuse-values`) lack them. */}}
{{- define "larder.webhookPort" -}}{{ .Values.webhook.port | default 9443 }}{{- end }}
{{- define "larder.healthPort" -}}{{ (.Values.health).port | default 8081 }}{{- end }}

{{/* The security context of the operator's pods. Left out: what the values set to null, as OpenShift wants it. */}}
{{- define "larder.podSecurityContext" -}}
{{- $default := dict "runAsNonRoot" true "runAsUser" 65532 "runAsGroup" 65532 "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- toYaml (.Values.podSecurityContext | default $default) }}
{{- end }}

{{/* Head of a ValidatingAdmissionPolicy that confines the operator's account, after its binding: dict "name" NAME "root" $. */}}
{{- define "larder.confine" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ include "larder.operator" .root }}-{{ .name }}
  labels:
    {{- include "larder.labels" .root | nindent 4 }}
spec:
  policyName: {{ include "larder.operator" .root }}-{{ .name }}
  validationActions: [Deny]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ include "larder.operator" .root }}-{{ .name }}
  labels:
    {{- include "larder.labels" .root | nindent 4 }}
spec:
  failurePolicy: Fail
  matchConditions:
  - name: by-the-operator
    expression: {{ printf "request.userInfo.username == 'system:serviceaccount:%s:%s'" .root.Release.Namespace (include "larder.serviceAccount" .root) | quote }}
{{- end }}

{{/* A CEL expression: two maps are equal but for some members: dict "is" CEL "was" CEL "but" CEL, of a member's name k. */}}
{{- define "larder.equal" -}}
{{ .is }}.all(k, {{ .but }} || (k in {{ .was }} && {{ .is }}[k] == {{ .was }}[k])) && {{ .was }}.all(k, {{ .but }} || k in {{ .is }})
{{- end }}

{{/* Volume with the client CA of the webhook, if there is one. */}}
{{- define "larder.clientCA" -}}
{{- $ca := .Values.webhook.clientCA | default dict }}
{{- $key := $ca.key | default "ca.crt" }}
{{- if and $ca.configMap $ca.secret }}
{{- fail "webhook.clientCA names a ConfigMap and a Secret: name one" }}
{{- else if $ca.configMap }}
configMap: {name: {{ $ca.configMap }}, items: [{key: {{ $key | quote }}, path: ca.crt}]}
{{- else if $ca.secret }}
secret: {secretName: {{ $ca.secret }}, items: [{key: {{ $key | quote }}, path: ca.crt}]}
{{- end }}
{{- end }}
