//! Certificates, authorities and revocations that change while processes run, and certificates
//! that end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use failover::engine::units::as_millis;
use failover::ports::{Clock, Credentials};
use sha2::{Digest, Sha256};

use super::*;

const GCP: &str = "gcp.agent.shop.failover.internal";
const ALICE: &str = "alice.operator.failover.internal";
const PARIS: &str = "paris.observer.shop.failover.internal";
const DAY: Duration = Duration::from_hours(24);

/// How long the end of a certificate lies behind (or before) us.
fn ended(ago: Duration) -> Duration {
    SystemClock
        .wall()
        .since(in_2020())
        .checked_sub(ago)
        .unwrap()
}

impl House {
    /// A further certificate for somebody who has one.
    fn again(&self, name: &str, validity: Duration) -> TlsFiles {
        let short = name.trim_end_matches(".failover.internal");
        for ending in ["pem", "key"] {
            drop(fs::remove_file(
                self.dir.path().join(format!("{short}.{ending}")),
            ));
        }
        self.issue(name, validity)
    }
}

/// The folder of one process.
struct Desk(tempfile::TempDir);

impl Desk {
    fn with(files: &TlsFiles) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        fs::write(desk.file("revoked.txt"), "# nobody yet\n").unwrap();
        desk.authorities(&[&files.ca]);
        desk.pair(files);
        desk
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn files(&self) -> TlsFiles {
        TlsFiles {
            ca: self.file("ca.pem"),
            certificate: self.file("own.pem"),
            key: self.file("own.key"),
            revoked: Some(self.file("revoked.txt")),
        }
    }

    fn material(&self) -> TlsMaterial {
        TlsMaterial::load(&self.files()).unwrap()
    }

    fn authorities(&self, all: &[&PathBuf]) {
        let texts = all.iter().map(|path| fs::read_to_string(path).unwrap());
        fs::write(self.file("ca.pem"), texts.collect::<String>()).unwrap();
    }

    fn pair(&self, files: &TlsFiles) {
        fs::copy(&files.certificate, self.file("own.pem")).unwrap();
        fs::copy(&files.key, self.file("own.key")).unwrap();
    }

    fn revoke(&self, line: &str) {
        let path = self.file("revoked.txt");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("{text}{line}\n")).unwrap();
    }
}

fn fingerprint(files: &TlsFiles) -> String {
    let certificate = CertificateDer::from_pem_file(&files.certificate).unwrap();
    data_encoding::HEXUPPER.encode(&Sha256::digest(&certificate))
}

async fn call(client: &PeerClient) -> Result<Identity, CallError> {
    client.get("/who", SOON).await
}

/// Waits until a process says what it refuses.
async fn refused(material: &TlsMaterial, said: &str) {
    let wait = async {
        loop {
            material.look();
            let refused = material.book().facts().refused.join("; ");
            if refused.contains(said) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(SOON * 2, wait).await;
    waited.unwrap_or_else(|_late| panic!("`{said}` is not said: {:?}", material.book().facts()));
}

/// The certificate that a server shows.
async fn shown(server: &Server, by: &TlsMaterial) -> CertificateDer<'static> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(by.client_config()));
    let name = ServerName::try_from(AGENT).unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    let (_, connection) = stream.get_ref();
    connection.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart_and_both_are_good_meanwhile() {
    let house = House::new();
    let desk = Desk::with(&house.issue(AGENT, CENTURY));
    let material = desk.material();
    let server = Server::start(&material).await;
    let theirs = Desk::with(&house.issue(CONTROLLER, CENTURY));
    let controller = theirs.material();
    let client = server.client(&controller, AGENT);
    assert!(call(&client).await.is_ok());

    let new = house.again(AGENT, CENTURY);
    desk.pair(&new);
    material.look();
    let certificate = CertificateDer::from_pem_file(&new.certificate).unwrap();
    assert_eq!(shown(&server, &controller).await, certificate);
    assert!(
        call(&client).await.is_ok(),
        "the other side has its old one"
    );
    theirs.pair(&house.again(CONTROLLER, CENTURY));
    controller.look();
    assert_eq!(call(&client).await, Ok(Identity::Controller));
    assert_eq!(material.book().facts().refused, Vec::<String>::new());
}

#[tokio::test]
async fn the_authority_changes_with_overlap_one_process_at_a_time() {
    let (old, new) = (House::new(), House::new());
    let [agent, controller] = [AGENT, CONTROLLER].map(|name| Desk::with(&old.issue(name, CENTURY)));
    let materials = [agent.material(), controller.material()];
    let server = Server::start(&materials[0]).await;
    let client = server.client(&materials[1], AGENT);
    let [old_ca, new_ca] = [&old, &new].map(|house| house.dir.path().join("ca.pem"));
    let look = || materials.iter().for_each(TlsMaterial::look);
    let steps: [(&str, &dyn Fn()); 6] = [
        ("the agent believes both", &|| {
            agent.authorities(&[&old_ca, &new_ca]);
        }),
        ("the controller, too", &|| {
            controller.authorities(&[&new_ca, &old_ca]);
        }),
        ("the controller's new certificate", &|| {
            controller.pair(&new.issue(CONTROLLER, CENTURY));
        }),
        ("the agent's", &|| agent.pair(&new.issue(AGENT, CENTURY))),
        ("the agent believes the new one alone", &|| {
            agent.authorities(&[&new_ca]);
        }),
        ("the controller, too", &|| {
            controller.authorities(&[&new_ca]);
        }),
    ];
    assert!(call(&client).await.is_ok());
    for (what, step) in steps {
        step();
        look();
        assert_eq!(call(&client).await, Ok(Identity::Controller), "{what}");
        look();
    }
    for material in &materials {
        assert_eq!(material.book().facts().refused, Vec::<String>::new());
    }
    let late = TlsMaterial::load(&old.again(GCP, CENTURY)).unwrap();
    assert!(matches!(
        call(&server.client(&late, AGENT)).await,
        Err(CallError::Tls(_))
    ));
}

#[tokio::test]
async fn an_authority_that_is_removed_too_early_is_kept_until_nobody_needs_it() {
    let (old, new) = (House::new(), House::new());
    let [agent, controller] = [AGENT, CONTROLLER].map(|name| Desk::with(&old.issue(name, CENTURY)));
    let [old_ca, new_ca] = [&old, &new].map(|house| house.dir.path().join("ca.pem"));
    for desk in [&agent, &controller] {
        desk.authorities(&[&old_ca, &new_ca]);
    }
    let material = agent.material();
    let server = Server::start(&material).await;
    let callers = controller.material();
    let client = server.client(&callers, AGENT);
    assert!(call(&client).await.is_ok());

    // Ours first: then we would turn ourselves away.
    agent.authorities(&[&new_ca]);
    refused(&material, "is not trusted by the authorities").await;
    // Ours is new, the controller's is not.
    agent.pair(&new.issue(AGENT, CENTURY));
    let said = "`controller.failover.internal` would be turned away";
    refused(&material, said).await;
    assert!(call(&client).await.is_ok(), "the old authority goes on");
    controller.pair(&new.issue(CONTROLLER, CENTURY));
    callers.look();
    assert!(call(&client).await.is_ok());
    material.look();
    assert_eq!(material.book().facts().refused, Vec::<String>::new());
    let late = TlsMaterial::load(&old.again(CONTROLLER, CENTURY)).unwrap();
    assert!(matches!(
        call(&server.client(&late, AGENT)).await,
        Err(CallError::Tls(_))
    ));
}

#[tokio::test]
async fn files_that_change_together_by_one_link_are_taken_together() {
    let (old, new) = (House::new(), House::new());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (name, house) in [("..1", &old), ("..2", &new)] {
        fs::create_dir(path(name)).unwrap();
        let files = house.issue(AGENT, CENTURY);
        for (from, to) in [
            (files.ca, "ca.crt"),
            (files.certificate, "tls.crt"),
            (files.key, "tls.key"),
        ] {
            fs::copy(from, path(name).join(to)).unwrap();
        }
    }
    // The new folder's authorities overlap; its certificate is good by the new one only.
    let [old_ca, new_ca] = [&old, &new].map(|house| house.dir.path().join("ca.pem"));
    let both = [&new_ca, &old_ca].map(|path| fs::read_to_string(path).unwrap());
    fs::write(path("..2/ca.crt"), both.concat()).unwrap();
    let lead = |to: &str| {
        symlink(to, path("..tmp")).unwrap();
        fs::rename(path("..tmp"), path("..data")).unwrap();
    };
    lead("..1");
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), path(name)).unwrap();
    }
    let files = TlsFiles {
        ca: path("ca.crt"),
        certificate: path("tls.crt"),
        key: path("tls.key"),
        revoked: None,
    };
    let material = TlsMaterial::load(&files).unwrap();
    let server = Server::start(&material).await;
    let believing_both = |house: &House| {
        let mut files = house.issue(CONTROLLER, CENTURY);
        files.ca = path("..2/ca.crt");
        server.client(&TlsMaterial::load(&files).unwrap(), AGENT)
    };
    let [by_old, by_new] = [&old, &new].map(believing_both);
    assert!(call(&by_old).await.is_ok());
    assert!(call(&by_new).await.is_err());
    lead("..2");
    material.look();
    for client in [by_old, by_new] {
        assert!(call(&client).await.is_ok());
    }
    assert_eq!(material.book().facts().refused, Vec::<String>::new());
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_old_goes_on_until_it_does() {
    let house = House::new();
    let first = house.issue(AGENT, CENTURY);
    let desk = Desk::with(&first);
    let old = fs::read(&first.certificate).unwrap();
    let material = desk.material();
    let server = Server::start(&material).await;
    let client = server.client(&house.material(CONTROLLER), AGENT);
    let kept = Desk::with(&house.again(AGENT, CENTURY));
    let new = kept.files();
    let whole = fs::read(&new.certificate).unwrap();
    let other = house.issue(GCP, CENTURY);
    let over = house.issue(PARIS, ended(DAY));
    // Made an hour and more from now by a clock that goes ahead.
    let hours = Duration::from_hours(3);
    let early = WallTime(SystemClock.wall().0 + as_millis(hours));
    let elsewhere = tempfile::tempdir().unwrap();
    fs::copy(&new.ca, elsewhere.path().join("ca.pem")).unwrap();
    fs::copy(
        house.dir.path().join("ca.key"),
        elsewhere.path().join("ca.key"),
    )
    .unwrap();
    let ahead = Authority::load(elsewhere.path()).unwrap();
    let ahead = ahead
        .issue(&AGENT.parse().unwrap(), early, CENTURY)
        .unwrap();
    let put: [(&str, &dyn Fn()); 6] = [
        ("does not hold certificates", &|| {
            fs::write(desk.file("own.pem"), &whole[..whole.len() / 2]).unwrap();
        }),
        ("does not belong to", &|| {
            fs::write(desk.file("own.pem"), &old).unwrap();
        }),
        ("is for `gcp.agent.shop", &|| desk.pair(&other)),
        ("is for `paris.observer", &|| desk.pair(&over)),
        ("not valid yet", &|| desk.pair(&ahead)),
        ("expired", &|| desk.pair(&house.again(AGENT, ended(DAY)))),
    ];
    for (said, put) in put {
        put();
        refused(&material, said).await;
        assert!(call(&client).await.is_ok(), "{said}");
        desk.pair(&new);
        material.look();
        assert_eq!(material.book().facts().refused, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_turned_away_and_its_connections_end_within_seconds() {
    let house = House::new();
    let desk = Desk::with(&house.issue(AGENT, CENTURY));
    let material = desk.material();
    let watching = tokio::spawn(material.clone().watch());
    let mut server = Server::start(&material).await;
    let lost = house.issue(GCP, CENTURY);
    let client = server.client(&TlsMaterial::load(&lost).unwrap(), AGENT);
    assert!(call(&client).await.is_ok());
    let standing = client.clone();
    let hour = Duration::from_hours(1);
    let standing =
        tokio::spawn(async move { standing.get::<Identity>("/never", hour).await.unwrap_err() });
    let other = server.client(&house.material(CONTROLLER), AGENT);
    assert!(call(&other).await.is_ok());

    desk.revoke(&fingerprint(&lost));
    let error = tokio::time::timeout(SOON * 2, standing).await.unwrap();
    assert!(matches!(error.unwrap(), CallError::Lost(_)));
    assert!(matches!(call(&client).await, Err(CallError::Tls(_))));
    let said = server.next_rejection().await;
    assert!(said.contains("Revoked"), "{said}");
    assert!(call(&other).await.is_ok(), "nobody else is turned away");
    // Its new certificate is another one.
    let new = TlsMaterial::load(&house.again(GCP, CENTURY)).unwrap();
    assert!(call(&server.client(&new, AGENT)).await.is_ok());
    watching.abort();
}

/// A list of revoked certificates, as an authority signs it.
fn crl(house: &House, serial: &[u8]) -> String {
    let issuer = hand_issuer(house);
    let moment = rcgen::date_time_ymd(2020, 1, 1);
    let list = rcgen::CertificateRevocationListParams {
        this_update: moment,
        next_update: rcgen::date_time_ymd(2120, 1, 1),
        crl_number: rcgen::SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: vec![rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(serial),
            revocation_time: moment,
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer).unwrap().pem().unwrap()
}

#[tokio::test]
async fn a_certificate_is_revoked_by_serial_by_a_list_of_its_authority_and_with_its_authority() {
    let house = House::new();
    let lost = house.issue(GCP, CENTURY);
    let certificate = CertificateDer::from_pem_file(&lost.certificate).unwrap();
    let parsed = webpki::EndEntityCert::try_from(&certificate).unwrap();
    let serial = data_encoding::HEXUPPER.encode(parsed.serial());
    let ca = CertificateDer::from_pem_file(&lost.ca).unwrap();
    let ca = data_encoding::HEXLOWER.encode(&Sha256::digest(&ca));
    let other = House::new();
    for (what, line) in [
        ("serial", format!("serial={serial}")),
        ("list", crl(&house, parsed.serial())),
        ("authority", format!("sha256 Fingerprint={ca}")),
    ] {
        // Ours is of another authority, so that we stay ourselves.
        let desk = Desk::with(&other.again(AGENT, CENTURY));
        desk.authorities(&[&lost.ca, &other.dir.path().join("ca.pem")]);
        let material = desk.material();
        let server = Server::start(&material).await;
        let theirs = Desk::with(&lost);
        theirs.authorities(&[&lost.ca, &other.dir.path().join("ca.pem")]);
        let client = server.client(&theirs.material(), AGENT);
        assert!(call(&client).await.is_ok(), "{what}");
        desk.revoke(&line);
        material.look();
        let error = call(&client).await.unwrap_err();
        assert!(
            matches!(error, CallError::Tls(_) | CallError::Lost(_)),
            "{what}: {error}"
        );
        let error = call(&client).await.unwrap_err();
        assert!(matches!(error, CallError::Tls(_)), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_is_revoked_is_not_called_any_more() {
    let house = House::new();
    let lost = house.issue(AGENT, CENTURY);
    let server = Server::start(&TlsMaterial::load(&lost).unwrap()).await;
    let desk = Desk::with(&house.issue(CONTROLLER, CENTURY));
    let material = desk.material();
    let client = server.client(&material, AGENT);
    assert!(call(&client).await.is_ok());
    desk.revoke(&fingerprint(&lost));
    material.look();
    let error = call(&client).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Tls(text) if text.contains("Revoked")),
        "{error}"
    );
}

#[tokio::test]
async fn a_list_with_a_line_without_sense_is_refused_and_the_old_one_goes_on() {
    let house = House::new();
    let desk = Desk::with(&house.issue(AGENT, CENTURY));
    let lost = house.issue(GCP, CENTURY);
    desk.revoke(&fingerprint(&lost));
    let material = desk.material();
    let server = Server::start(&material).await;
    let client = server.client(&TlsMaterial::load(&lost).unwrap(), AGENT);
    assert!(matches!(call(&client).await, Err(CallError::Tls(_))));
    for broken in ["alice's laptop", ""] {
        fs::write(desk.file("revoked.txt"), broken).unwrap();
        if broken.is_empty() {
            fs::remove_file(desk.file("revoked.txt")).unwrap();
        }
        refused(&material, "revoked.txt").await;
        assert!(matches!(call(&client).await, Err(CallError::Tls(_))));
    }
}

#[tokio::test]
async fn a_date_alone_turns_neither_controller_nor_agent_away_for_thirty_days_and_others_at_once() {
    let house = House::new();
    let mut server = Server::start(&house.material(AGENT)).await;
    let controller = house.material(CONTROLLER);
    for (name, ago, good) in [
        (GCP, DAY, true),
        (CONTROLLER, DAY * 29, true),
        (GCP, DAY * 31, false),
        (CONTROLLER, DAY * 31, false),
        (ALICE, DAY, false),
        (PARIS, DAY, false),
    ] {
        let files = house.again(name, ended(ago));
        let client = server.client(&TlsMaterial::load(&files).unwrap(), AGENT);
        let answer = call(&client).await;
        assert_eq!(answer.is_ok(), good, "{name} {ago:?}: {answer:?}");
        if !good {
            let said = server.next_rejection().await;
            assert!(said.contains("expired"), "{said}");
        }
    }
    // The other way round: whom we call.
    for (ago, good) in [(DAY, true), (DAY * 31, false)] {
        let files = house.again(AGENT, ended(ago));
        let server = Server::start(&TlsMaterial::load(&files).unwrap()).await;
        let client = server.client(&controller, AGENT);
        assert_eq!(call(&client).await.is_ok(), good, "{ago:?}");
    }
    // It is of another name, or of another authority: nothing of that is a matter of dates.
    let files = house.again(GCP, ended(DAY));
    let other = Server::start(&TlsMaterial::load(&files).unwrap()).await;
    assert!(call(&other.client(&controller, AGENT)).await.is_err());
    let stranger = House::new();
    let mut files = stranger.issue(GCP, ended(DAY));
    files.ca = house.dir.path().join("ca.pem");
    let client = server.client(&TlsMaterial::load(&files).unwrap(), AGENT);
    assert!(matches!(call(&client).await, Err(CallError::Tls(_))));
}

#[tokio::test]
async fn the_connection_of_a_person_ends_with_the_certificate_and_that_of_an_agent_stands() {
    let house = House::new();
    let server = Server::start(&house.material(AGENT)).await;
    let life = Duration::from_secs(3);
    let validity = SystemClock.wall().since(in_2020()) + life;
    let [alice, gcp] = [ALICE, GCP].map(|name| {
        let material = TlsMaterial::load(&house.again(name, validity)).unwrap();
        let client = server.client(&material, AGENT);
        let hour = Duration::from_hours(1);
        tokio::spawn(async move { client.get::<Identity>("/never", hour).await.unwrap_err() })
    });
    let error = tokio::time::timeout(SOON * 3, alice).await.unwrap();
    assert!(matches!(error.unwrap(), CallError::Lost(_)));
    assert!(!gcp.is_finished());
    gcp.abort();
}

#[tokio::test]
async fn the_ends_of_what_is_held_and_seen_are_known() {
    let house = House::new();
    let material = house.material(AGENT);
    let server = Server::start(&material).await;
    let soon = TlsMaterial::load(&house.issue(GCP, ended(DAY))).unwrap();
    assert!(call(&server.client(&soon, AGENT)).await.is_ok());
    let alice = house.material(ALICE);
    assert!(call(&server.client(&alice, AGENT)).await.is_ok());
    let ends = material.book().facts().ends;
    let owners: Vec<&str> = ends.iter().map(|end| end.owner.as_str()).collect();
    assert_eq!(owners, ["authority", "aws.agent.shop", "gcp.agent.shop"]);
    assert!(ends[2].until < SystemClock.wall() && ends[1].until > SystemClock.wall());
}

#[tokio::test]
async fn who_is_called_may_have_another_certificate_than_the_standing_connection_showed() {
    let (old, new) = (House::new(), House::new());
    let [agent, controller] = [AGENT, CONTROLLER].map(|name| Desk::with(&old.issue(name, CENTURY)));
    let [old_ca, new_ca] = [&old, &new].map(|house| house.dir.path().join("ca.pem"));
    for desk in [&agent, &controller] {
        desk.authorities(&[&old_ca, &new_ca]);
    }
    let (material, callers) = (agent.material(), controller.material());
    let server = Server::start(&material).await;
    let client = server.client(&callers, AGENT);
    controller.pair(&new.issue(CONTROLLER, CENTURY));
    callers.look();
    assert!(call(&client).await.is_ok());
    // The connection stands, and knows the agent's old certificate.
    agent.pair(&new.issue(AGENT, CENTURY));
    material.look();
    assert!(call(&client).await.is_ok());
    controller.authorities(&[&new_ca]);
    for _ in 0..3 {
        callers.look();
        assert!(call(&client).await.is_ok());
    }
    // Taken: whoever shows a certificate of the old authority is called no more.
    let other = Server::start(&TlsMaterial::load(&old.again(AGENT, CENTURY)).unwrap()).await;
    let stranger = call(&other.client(&callers, AGENT)).await;
    assert!(matches!(stranger, Err(CallError::Tls(_))), "{stranger:?}");
    assert_eq!(callers.book().facts().refused, Vec::<String>::new());
}

#[test]
fn the_key_of_orders_changes_with_overlap_and_a_lost_one_is_revoked() {
    use failover::adapters::order_keys::{ObeyedKeys, OrdersKey};

    let house = House::new();
    let desk = Desk::with(&house.issue(AGENT, CENTURY));
    let material = desk.material();
    let [old, new] = [(), ()].map(|()| SigningKey::generate().unwrap());
    let sign_with = |key: &SigningKey| {
        drop(fs::remove_file(desk.file("orders.key")));
        key.to_file(&desk.file("orders.key")).unwrap();
    };
    let obey = |keys: &[&SigningKey]| {
        let lines = keys.iter().map(|key| format!("{}\n", key.verifying_key()));
        fs::write(desk.file("orders.pub"), lines.collect::<String>()).unwrap();
    };
    sign_with(&old);
    obey(&[&old]);
    let controller = OrdersKey::from_file(&desk.file("orders.key"), &material.book()).unwrap();
    let agent = ObeyedKeys::from_file(&desk.file("orders.pub"), &material).unwrap();
    let order = Order {
        instance: None,
        plan: 3,
        group: "shop".parse().unwrap(),
        site: "aws".parse().unwrap(),
        epoch: Epoch(2),
        mark: Postmark {
            life: 1,
            at: Duration::ZERO,
        },
        valid_for: SOON,
        check_only: false,
        what: What::Fence,
    };
    let obeyed = || {
        let signed = SignedOrder::seal(order.clone(), &controller).unwrap();
        SignedOrder::open(signed.sealed().clone(), &agent).is_ok()
    };
    assert!(obeyed());
    obey(&[&old, &new]);
    assert!(obeyed());
    sign_with(&new);
    assert!(obeyed());
    // Half written: what was good goes on.
    fs::write(desk.file("orders.key"), "-----BEGIN PRIVATE").unwrap();
    fs::write(desk.file("orders.pub"), "failover-ed25519-pub").unwrap();
    assert!(obeyed());
    sign_with(&new);
    obey(&[&new]);
    assert!(obeyed());
    sign_with(&old);
    assert!(!obeyed(), "the old one is obeyed no more");
    // Lost: at once, wherever it still stands.
    obey(&[&old, &new]);
    assert!(obeyed());
    desk.revoke(&old.verifying_key().to_string());
    material.look();
    assert!(!obeyed());
    sign_with(&new);
    assert!(obeyed());
}
