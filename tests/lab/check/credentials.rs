//! Certificates that end, and passwords that are refused at one vantage point or at all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use failover::adapters::certificates::Authority;
use failover::engine::readiness::CheckState::{Blocks, Warns};
use failover::engine::reason::Code;
use failover::lab::layout::{Layout, SiteLayout};
use failover::lab::supervisor::Supervisor;

use super::{check, sql, until_green, until_named};
use crate::certificates::{MONTHS, renew};
use crate::rehearsal::edit;
use crate::replay::ready;
use crate::stage::{FAST, on_a_prepared_lab};

const DAY: Duration = Duration::from_secs(86_400);

/// The agent at the passive site gets a certificate that lasts so long.
fn renew_agent(lab: &Supervisor, lasting: Duration) {
    let tls = lab.layout.dir.join("tls");
    let folder = tempfile::tempdir().unwrap();
    for file in ["ca.pem", "ca.key"] {
        fs::copy(tls.join(file), folder.path().join(file)).unwrap();
    }
    let authority = Authority::load(folder.path()).unwrap();
    renew(&authority, folder.path(), &tls, "gcp.agent.shop", lasting);
}

async fn certificates(lab: &Supervisor) {
    let said = "that of gcp.agent.shop expires at";
    renew_agent(lab, DAY * 20);
    until_named(lab, Code::CertificateEnding, Warns, said).await;
    assert_eq!(check(lab).await.unwrap().0, 0, "it is time enough");
    renew_agent(lab, DAY * 3);
    until_named(lab, Code::CertificateUrgent, Blocks, said).await;
    renew_agent(lab, MONTHS);
    until_green(lab, "the certificate is renewed").await;
}

/// Gives the controller a file of its own with the password of the databases.
fn own_password(layout: &Layout) {
    let of = |name: &str| layout.dir.join(name);
    fs::copy(of("failover.password"), of("controller.password")).unwrap();
    edit(&layout.controller_config(), |text| {
        assert!(text.contains("failover.password"), "{text}");
        text.replace("failover.password", "controller.password")
    });
}

async fn passwords(lab: &Supervisor, aws: &SiteLayout) {
    let file = |name: &str| lab.layout.dir.join(name);
    sql(aws, "ALTER ROLE failover PASSWORD 'second'").await;
    for said in [
        "vantage-points-mute@aws: 0 vantage points (limit 2 vantage points); `",
        "`controller` for",
        "`agent:gcp` for",
    ] {
        until_named(lab, Code::VantagePointsMute, Blocks, said).await;
    }
    assert_eq!(ready(lab).await.0, 503);

    // The agents' file follows; the controller's own does not yet, and then is open to others.
    fs::write(file("failover.password"), "second").unwrap();
    let one = "vantage-points-mute@aws: 1 vantage point (limit 2 vantage points); `controller`";
    until_named(lab, Code::VantagePointsMute, Blocks, one).await;
    let why = "password authentication failed";
    until_named(lab, Code::VantagePointsMute, Blocks, why).await;
    assert_eq!(ready(lab).await.0, 503);
    let open = |mode| {
        let open = fs::Permissions::from_mode(mode);
        fs::set_permissions(file("controller.password"), open).unwrap();
    };
    open(0o644);
    fs::write(file("controller.password"), "second").unwrap();
    until_named(lab, Code::SecretRefused, Warns, "controller.password").await;

    open(0o600);
    until_green(lab, "everybody has the new password").await;
}

#[test]
fn it_names_certificates_that_end_and_passwords_that_are_refused() {
    let test = "check::credentials::it_names_certificates_that_end_and_passwords_that_are_refused";
    on_a_prepared_lab(test, FAST, own_password, async |lab| {
        lab.expects_error("a certificate expires soon");
        lab.expects_error("the new content is not used");
        let aws = lab.layout.sites[0].clone();
        until_green(lab, "nothing is planted").await;
        certificates(lab).await;
        passwords(lab, &aws).await;
    });
}
