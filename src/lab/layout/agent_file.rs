//! The agents' configurations.

use std::path::Path;

use super::{Layout, SiteLayout};
use crate::lab::cluster::{DEPLOYMENT, NAMESPACE};

impl Layout {
    pub(super) fn agent_text(&self, own: &SiteLayout, other: &SiteLayout) -> String {
        let dir = self.dir.display();
        let instance = &own.instance;
        let run_as = self
            .tools
            .user()
            .map(|_| "run_as = \"postgres\"\n")
            .unwrap_or_default();
        let mut text = format!(
            "[agent]\n{}group = \"{}\"\nsite = \"{}\"\nlisten = \"{}\"\nlisten_plain = \"{}\"\nstate_dir = \"{}\"\ncontroller = \"{}\"\nallow_volatile_state = true\n\n",
            // An earlier program, which a lab may run, knows no other kind and no such key.
            own.cluster.map_or("", |_| "kind = \"statefulset\"\n"),
            self.group,
            own.name,
            own.agent,
            own.agent_plain,
            own.dir.join("state").display(),
            self.controller
        );
        text += &self.tls_lines(&format!("{}.agent.{}", own.name, self.group));
        text += &format!("\n[orders]\ncontroller_public_key = \"{dir}/tls/orders.pub\"\n");
        text += &format!(
            "\n[peer]\nsite = \"{}\"\nagent = \"{}\"\n{}",
            other.name,
            other.agent,
            self.database_lines(other)
        );
        text += &format!(
            "\n[postgres]\nbin_dir = \"{}\"\ndata_dir = \"{}\"\nport = {}\nlisten_addresses = \"{}\"\nsocket_dir = \"{}\"\n{run_as}superuser = \"postgres\"\ndatabase = \"app\"\noptions = [\"config_file={}\"]\nlog_file = \"{}\"\nprimary_conninfo = \"host={} port={} user=replicator passfile={} sslmode=disable application_name={}\"\nallow_plaintext = true\n",
            self.tools
                .program("postgres")
                .parent()
                .unwrap_or(Path::new("/"))
                .display(),
            instance.data().display(),
            instance.port,
            own.ip,
            instance.socket().display(),
            instance.dir.join("postgresql.conf").display(),
            own.dir.join("postgres.log").display(),
            other.ip,
            other.instance.port,
            own.passfile().display(),
            own.name
        );
        text += &match own.cluster {
            None => self.commands_text(own),
            Some(_) => pod_text(own),
        };
        text
    }

    /// The service as two commands.
    fn commands_text(&self, own: &SiteLayout) -> String {
        let program = &self.program;
        let api = |verb: &str| {
            format!(
                "[\"{}\", \"lab\", \"site-api\", \"{verb}\", \"{}\"]",
                program.display(),
                own.api_config().display()
            )
        };
        format!(
            "\n[workloads]\nstart = {}\nstop = {}\nready = \"http://{}/healthz\"\n",
            api("start"),
            api("stop"),
            own.api
        )
    }
}

/// The service as a Deployment of the site's cluster.
fn pod_text(own: &SiteLayout) -> String {
    format!(
        "\n[pod]\nstop_within = \"5s\"\n\n[workloads]\nkind = \"kubernetes\"\nready = \"http://{}/healthz\"\nnamespace = \"{NAMESPACE}\"\n\n[workloads.cluster]\naccess = \"kubeconfig\"\nkubeconfig = \"{}\"\ntimeout = \"2s\"\n\n[[workloads.objects]]\nkind = \"Deployment\"\nname = \"{DEPLOYMENT}\"\nreplicas = 1\n",
        own.api,
        own.kubeconfig().display()
    )
}
