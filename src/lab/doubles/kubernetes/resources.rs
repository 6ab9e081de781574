//! Which kinds of objects the server keeps, and what a path names.

use serde_json::Value;

/// A kind of object.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) resource: &'static str,
    pub(super) name: &'static str,
    pub(super) namespaced: bool,
    /// Whether there is a `/scale`, and by which field of `spec` it counts.
    pub(super) scale: Option<&'static str>,
    /// The fields of `spec` that strict validation knows.
    spec: &'static [&'static str],
}

const POD: &[&str] = &[
    "containers",
    "initContainers",
    "nodeName",
    "restartPolicy",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "volumes",
];

#[rustfmt::skip]
pub(super) const KINDS: &[Kind] = &[
    Kind { group: "", version: "v1", resource: "namespaces", name: "Namespace", namespaced: false, scale: None, spec: &["finalizers"] },
    Kind { group: "", version: "v1", resource: "nodes", name: "Node", namespaced: false, scale: None, spec: &["providerID", "taints", "unschedulable", "podCIDR"] },
    Kind { group: "", version: "v1", resource: "pods", name: "Pod", namespaced: true, scale: None, spec: POD },
    Kind { group: "apps", version: "v1", resource: "deployments", name: "Deployment", namespaced: true, scale: Some("replicas"), spec: &["minReadySeconds", "paused", "progressDeadlineSeconds", "replicas", "revisionHistoryLimit", "selector", "strategy", "template"] },
    Kind { group: "apps", version: "v1", resource: "statefulsets", name: "StatefulSet", namespaced: true, scale: Some("replicas"), spec: &["minReadySeconds", "ordinals", "persistentVolumeClaimRetentionPolicy", "podManagementPolicy", "replicas", "revisionHistoryLimit", "selector", "serviceName", "template", "updateStrategy", "volumeClaimTemplates"] },
    Kind { group: "batch", version: "v1", resource: "cronjobs", name: "CronJob", namespaced: true, scale: None, spec: &["concurrencyPolicy", "failedJobsHistoryLimit", "jobTemplate", "schedule", "startingDeadlineSeconds", "successfulJobsHistoryLimit", "suspend", "timeZone"] },
    Kind { group: "autoscaling", version: "v2", resource: "horizontalpodautoscalers", name: "HorizontalPodAutoscaler", namespaced: true, scale: None, spec: &["behavior", "maxReplicas", "metrics", "minReplicas", "scaleTargetRef"] },
    Kind { group: "coordination.k8s.io", version: "v1", resource: "leases", name: "Lease", namespaced: true, scale: None, spec: &["acquireTime", "holderIdentity", "leaseDurationSeconds", "leaseTransitions", "preferredHolder", "renewTime", "strategy"] },
    Kind { group: "postgresql.cnpg.io", version: "v1", resource: "clusters", name: "Cluster", namespaced: true, scale: Some("instances"), spec: &["affinity", "backup", "bootstrap", "externalClusters", "imageName", "instances", "postgresql", "primaryUpdateStrategy", "replica", "resources", "storage"] },
    Kind { group: "authorization.k8s.io", version: "v1", resource: "selfsubjectaccessreviews", name: "SelfSubjectAccessReview", namespaced: false, scale: None, spec: &["resourceAttributes", "nonResourceAttributes"] },
];

/// The kind of this group and plural name.
pub(super) fn kind(group: &str, resource: &str) -> Option<&'static Kind> {
    let is = |kind: &&Kind| kind.group == group && kind.resource == resource;
    KINDS.iter().find(is)
}

/// The kind of this plural name, of whatever group.
pub(super) fn named(resource: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.resource == resource)
}

impl Kind {
    /// As `apiVersion` has it.
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// As messages name it: `statefulsets.apps`.
    pub(super) fn shown(&self) -> String {
        if self.group.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }

    /// The fields of a body that no schema has. `scale`: the body is of the subresource.
    pub(super) fn unknown_fields(&self, body: &Value, scale: bool) -> Vec<String> {
        const TOP: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
        const METADATA: &[&str] = &[
            "annotations",
            "creationTimestamp",
            "deletionGracePeriodSeconds",
            "deletionTimestamp",
            "finalizers",
            "generateName",
            "generation",
            "labels",
            "managedFields",
            "name",
            "namespace",
            "ownerReferences",
            "resourceVersion",
            "uid",
        ];
        let spec: &[&str] = if scale { &["replicas"] } else { self.spec };
        let places = [("", TOP), ("metadata", METADATA), ("spec", spec)];
        let mut unknown = Vec::new();
        for (place, known) in places {
            let part = if place.is_empty() { body } else { &body[place] };
            let fields = part.as_object().into_iter().flat_map(|map| map.keys());
            let foreign = fields.filter(|field| !known.contains(&field.as_str()));
            unknown.extend(foreign.map(|field| format!("{place}.{field}")));
        }
        let trimmed = unknown.iter().map(|field| field.trim_start_matches('.'));
        trimmed.map(ToOwned::to_owned).collect()
    }
}

/// What a path names.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) kind: &'static Kind,
    pub(super) namespace: String,
    pub(super) name: Option<String>,
    pub(super) subresource: String,
}

impl Place {
    /// `None`: nothing that this server has.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/').map(ToOwned::to_owned);
        let (group, version) = match parts.next()?.as_str() {
            "api" => (String::new(), parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        let mut rest: Vec<String> = parts.collect();
        let mut namespace = String::new();
        if rest.len() >= 3 && rest.first().is_some_and(|part| part == "namespaces") {
            namespace = rest.remove(1);
            rest.remove(0);
        }
        let mut rest = rest.into_iter();
        let kind = kind(&group, &rest.next()?)?;
        if kind.version != version {
            return None;
        }
        Some(Self {
            kind,
            namespace,
            name: rest.next(),
            subresource: rest.next().unwrap_or_default(),
        })
    }

    /// One object by its plural name, with a subresource where there is one: `statefulsets/scale`.
    pub(super) fn of(resource: &str, namespace: &str, name: &str) -> Option<Self> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Some(Self {
            kind: named(resource)?,
            namespace: namespace.to_owned(),
            name: Some(name.to_owned()),
            subresource: subresource.to_owned(),
        })
    }

    /// With its subresource, as rules of access name it.
    pub(super) fn resource(&self) -> String {
        if self.subresource.is_empty() {
            self.kind.resource.to_owned()
        } else {
            format!("{}/{}", self.kind.resource, self.subresource)
        }
    }
}
