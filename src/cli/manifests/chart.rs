//! The files of `deploy/helm/failover`, as they were when the program was built.

macro_rules! file {
    ($path:literal) => {
        include_str!(concat!("../../../deploy/helm/failover/", $path))
    };
}

/// The default values.
pub const VALUES: &str = file!("values.yaml");

/// What values must look like.
pub const SCHEMA: &str = file!("values.schema.json");

/// The named templates that the others include.
pub const HELPERS: &str = file!("templates/_helpers.tpl");

/// Every template that makes manifests, by its path in the chart.
pub const TEMPLATES: [(&str, &str); 4] = [
    ("templates/agent.yaml", file!("templates/agent.yaml")),
    (
        "templates/controller.yaml",
        file!("templates/controller.yaml"),
    ),
    ("templates/observer.yaml", file!("templates/observer.yaml")),
    ("templates/rbac.yaml", file!("templates/rbac.yaml")),
];
