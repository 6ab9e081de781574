{{- /* Go templates as text/template has them, and of Helm's functions only these: include, nindent, toJson,
       dict, list, kindIs, has, required, sha256sum, trim. `failover generate manifests` knows no others. */ -}}

{{- define "failover.labels" -}}
app.kubernetes.io/name: failover
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* What a table holds besides tables, as TOML. A JSON text, number, boolean or list of these is one of TOML's. */ -}}
{{- define "failover.keys" -}}
{{- range $key, $value := . }}
{{- if kindIs "map" $value }}
{{- else if and (kindIs "slice" $value) $value (kindIs "map" (index $value 0)) }}
{{- else }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The tables in a table, except the one that is named. */ -}}
{{- define "failover.tables" -}}
{{- $path := .path }}
{{- $except := .except }}
{{- range $key, $value := .table }}
{{- if has $key $except }}
{{- else if kindIs "map" $value }}

[{{ $path }}{{ $key }}]
{{- include "failover.keys" $value }}
{{- include "failover.tables" (dict "path" (printf "%s%s." $path $key) "table" $value "except" $except) }}
{{- else if and (kindIs "slice" $value) $value (kindIs "map" (index $value 0)) }}
{{- range $each := $value }}

[[{{ $path }}{{ $key }}]]
{{- include "failover.keys" $each }}
{{- include "failover.tables" (dict "path" (printf "%s%s." $path $key) "table" $each "except" $except) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "failover.failover-toml" -}}
{{- $config := .Values.controller.config -}}
[controller]
listen = "{{ .Values.listenAddress }}:7400"
listen_plain = "{{ .Values.listenAddress }}:7480"
policy = "policy.toml"
log = "/var/lib/failover/decision.log"
{{- include "failover.keys" $config.controller }}

[tls]
ca = "ca.pem"
certificate = "controller.pem"
key = "controller.key"
{{- if $config.tls }}{{ include "failover.keys" $config.tls }}{{ end }}

[orders]
key = "orders.key"
{{- include "failover.tables" (dict "path" "" "table" $config "except" (list "controller" "tls")) }}
{{- end }}

{{- define "failover.agent-toml" -}}
{{- $config := .Values.agent.config -}}
[agent]
listen = "{{ .Values.listenAddress }}:7401"
listen_plain = "{{ .Values.listenAddress }}:7481"
{{- include "failover.keys" $config.agent }}

[tls]
ca = "ca.pem"
certificate = "{{ $config.agent.site }}.agent.{{ $config.agent.group }}.pem"
key = "{{ $config.agent.site }}.agent.{{ $config.agent.group }}.key"
{{- if $config.tls }}{{ include "failover.keys" $config.tls }}{{ end }}

[orders]
controller_public_key = "orders.pub"
{{- include "failover.tables" (dict "path" "" "table" $config "except" (list "agent" "tls")) }}
{{- end }}

{{- define "failover.observer-toml" -}}
{{- $config := .Values.observer.config -}}
[tls]
ca = "ca.pem"
certificate = "{{ $config.observer.name }}.observer.{{ $config.observer.group }}.pem"
key = "{{ $config.observer.name }}.observer.{{ $config.observer.group }}.key"
{{- if $config.tls }}{{ include "failover.keys" $config.tls }}{{ end }}
{{- include "failover.tables" (dict "path" "" "table" $config "except" (list "tls")) }}
{{- end }}

{{- /* Of a pod of ours. */ -}}
{{- define "failover.pod-security" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "failover.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Where a pod may run. */ -}}
{{- define "failover.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ toJson . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints: {{ toJson . }}
{{- end }}
{{- end }}

{{- /* A folder with the file of a process and the content of its Secrets. The kubelet replaces them when they
       change; root owns them and the pod's group reads them. */ -}}
{{- define "failover.files" -}}
- name: files
  projected:
    # 0440.
    defaultMode: 288
    sources:
      - configMap: {name: {{ .configMap }}}
{{- range .secrets }}
      - secret: {name: {{ toJson . }}}
{{- end }}
{{- end }}

{{- define "failover.dns" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}
