//! Secrets and certificates of databases and name servers that change while processes run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE64;
use failover::adapters::clock::SystemClock;
use failover::adapters::postgres::{Connect, probe};
use failover::adapters::reread::CredentialBook;
use failover::adapters::rfc2136::{Rfc2136, TsigKey};
use failover::app::config::read_tsig_secret;
use failover::config::DatabaseAccess;
use failover::engine::answer::Answer;
use failover::engine::observation::ProbeFailure;
use failover::engine::units::Epoch;
use failover::lab::name_server::{NameServer, free_port, program};
use failover::ports::{Credentials, EffectError, Traffic};

use crate::pair::{LIMIT, Pair, Server, place, site, until};

/// A database as a configuration names it.
struct Access {
    dir: tempfile::TempDir,
    book: Arc<CredentialBook>,
}

impl Access {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let book = Arc::default();
        Self { dir, book }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn password(&self, text: &str) {
        let path = self.file("db.password");
        fs::write(&path, format!("{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn connect(&self, server: &Server, ca: bool) -> Connect {
        let instance = &server.instance;
        let access = DatabaseAccess {
            conninfo: format!(
                "host={} port={} user=failover dbname=app",
                instance.listen, instance.port
            ),
            password_file: Some(self.file("db.password")),
            ca: ca.then(|| self.file("ca.pem")),
        };
        access.connect("database@aws", &self.book).unwrap()
    }

    async fn refused(&self, connect: &Connect, said: &str) {
        until(said, async || {
            drop(probe(connect, None, LIMIT).await);
            self.book
                .facts()
                .refused
                .iter()
                .any(|text| text.contains(said))
        })
        .await;
    }
}

#[tokio::test]
async fn a_password_changes_without_a_restart_and_with_the_file_first_no_look_is_lost() {
    let pair = Pair::primary_only().await;
    let role = |password: &str| {
        let sql = format!("ALTER ROLE failover PASSWORD '{password}'");
        pair.primary.sql(&sql);
    };
    let access = Access::new();
    access.password("watch");
    let connect = access.connect(&pair.primary, false);
    let look = async || probe(&connect, None, LIMIT).await;
    look().await.unwrap();

    // The file first.
    access.password("second");
    look().await.unwrap();
    role("second");
    look().await.unwrap();
    // The server first: mute, until the file follows.
    role("third");
    let error = look().await.unwrap_err();
    assert!(matches!(error, ProbeFailure::Unauthorized(_)), "{error}");
    access.password("third");
    look().await.unwrap();
    // What worked once is not tried for ever.
    role("fourth");
    access.password("fifth");
    assert!(look().await.is_err());
    role("fifth");
    look().await.unwrap();
    assert_eq!(access.book.facts().refused, Vec::<String>::new());
}

#[tokio::test]
async fn a_password_file_that_is_exposed_empty_or_gone_is_refused_and_the_old_one_goes_on() {
    let pair = Pair::primary_only().await;
    let access = Access::new();
    access.password("watch");
    let connect = access.connect(&pair.primary, false);
    probe(&connect, None, LIMIT).await.unwrap();
    let path = access.file("db.password");
    let spoil: [(&str, &dyn Fn()); 3] = [
        ("chmod 600", &|| {
            access.password("second");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }),
        ("one line", &|| access.password("")),
        ("cannot read", &|| fs::remove_file(&path).unwrap()),
    ];
    for (said, spoil) in spoil {
        spoil();
        access.refused(&connect, said).await;
        probe(&connect, None, LIMIT).await.unwrap();
    }
    access.password("second");
    pair.primary.sql("ALTER ROLE failover PASSWORD 'second'");
    probe(&connect, None, LIMIT).await.unwrap();
    assert_eq!(access.book.facts().refused, Vec::<String>::new());
}

/// An authority, and a certificate of it in a server's data directory.
struct ServerAuthority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl ServerAuthority {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        Self {
            certificate,
            issuer,
        }
    }

    fn serve(&self, server: &Server) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = [server.instance.listen.to_string()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(2090, 1, 2);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let data = server.instance.data();
        for (name, text) in [
            ("server.crt", certificate.pem()),
            ("server.key", key.serialize_pem()),
        ] {
            own(&data, name, &text);
        }
        server.sql("ALTER SYSTEM SET ssl = on");
        server.sql("SELECT pg_reload_conf()");
    }
}

/// Writes a file that belongs to the owner of its folder.
fn own(folder: &Path, name: &str, text: &str) {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(folder).unwrap();
    let file = folder.join(name);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
}

#[tokio::test]
async fn the_authority_of_a_database_changes_with_overlap_and_the_end_of_its_certificate_is_known()
{
    let pair = Pair::primary_only().await;
    let [old, new] = ["old", "new"].map(ServerAuthority::new);
    let access = Access::new();
    access.password("watch");
    fs::write(access.file("ca.pem"), old.certificate.pem()).unwrap();
    let connect = access.connect(&pair.primary, true);
    let look = async || probe(&connect, None, LIMIT).await;
    old.serve(&pair.primary);
    until("the server encrypts", async || look().await.is_ok()).await;
    let end = &access.book.facts().ends[0];
    assert_eq!(end.owner, "database@aws");
    assert!(
        end.until.to_string().starts_with("2090-01-02"),
        "{}",
        end.until
    );

    // Too early: the server's certificate is not of it.
    fs::write(access.file("ca.pem"), new.certificate.pem()).unwrap();
    let error = look().await.unwrap_err();
    assert!(matches!(error, ProbeFailure::Unauthorized(_)), "{error}");
    let both = format!("{}{}", old.certificate.pem(), new.certificate.pem());
    fs::write(access.file("ca.pem"), &both).unwrap();
    look().await.unwrap();
    // Half written: what was good goes on.
    fs::write(access.file("ca.pem"), &both[..both.len() / 4]).unwrap();
    access.refused(&connect, "authority of a database").await;
    look().await.unwrap();
    fs::write(access.file("ca.pem"), &both).unwrap();
    new.serve(&pair.primary);
    fs::write(access.file("ca.pem"), new.certificate.pem()).unwrap();
    until("the new one alone will do", async || look().await.is_ok()).await;
    assert_eq!(access.book.facts().refused, Vec::<String>::new());
}

/// A name server, whose key can be changed.
struct Names {
    dir: tempfile::TempDir,
    port: u16,
    server: Option<NameServer>,
}

impl Names {
    async fn start(&mut self, secret: [u8; 32]) {
        if let Some(old) = self.server.take() {
            old.stop().await.unwrap();
        }
        let key = TsigKey {
            name: "failover".into(),
            secret: secret.into(),
        };
        let (ip, _) = self.place();
        let command = std::process::Command::new(program());
        let started = NameServer::start(command, self.dir.path(), ip, self.port, "shop.test", key);
        self.server = Some(started.await.unwrap());
    }

    fn place(&self) -> (std::net::IpAddr, u16) {
        static PLACE: std::sync::OnceLock<std::net::IpAddr> = std::sync::OnceLock::new();
        (*PLACE.get_or_init(|| place().0), self.port)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tsig_secret_that_changes_between_two_steps_is_taken_whichever_changes_first() {
    let mut names = Names {
        dir: tempfile::tempdir().unwrap(),
        port: 0,
        server: None,
    };
    names.port = free_port(names.place().0).unwrap();
    let [first, second, third] = [[1u8; 32], [2; 32], [3; 32]];
    names.start(first).await;
    let secrets = tempfile::tempdir().unwrap();
    let path = secrets.path().join("tsig.secret");
    let write = |secret: [u8; 32]| {
        fs::write(&path, BASE64.encode(&secret)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(first);
    let [aws, gcp] = ["192.0.2.1", "192.0.2.2"].map(|ip| vec![ip.parse().unwrap()]);
    let addresses = [(site("aws"), aws), (site("gcp"), gcp)].into();
    let server = names.server.as_ref().unwrap();
    let settings = server.settings("users".parse().unwrap(), "app.shop.test", addresses);
    let book = Arc::default();
    let target = Rfc2136::new(settings, Arc::new(SystemClock)).unwrap();
    let target = target
        .with_secret_file(&path, &book, read_tsig_secret)
        .unwrap();
    let epoch = std::cell::Cell::new(0);
    let point = async || {
        epoch.set(epoch.get() + 1);
        let there = target.read().await?;
        let weights = ["aws", "gcp"].map(|name| (site(name), u16::from(name == "aws") * 100));
        let answer = Answer {
            weights: weights.into(),
            epoch: Some(Epoch(epoch.get())),
        };
        target.apply(&there, &answer, "test", &|| Ok(())).await
    };
    point().await.unwrap();
    // Both, between two steps.
    write(second);
    names.start(second).await;
    point().await.unwrap();
    // The file first: refused once, and then signed with what the server knows.
    write(third);
    let error = point().await.unwrap_err();
    assert!(
        matches!(&error, EffectError::Failed(text) if text.contains("BADSIG")),
        "{error}"
    );
    point().await.unwrap();
    names.start(third).await;
    until("the new one is taken", async || point().await.is_ok()).await;
    // The server first: that is for the file to follow.
    names.start(first).await;
    let error = point().await.unwrap_err();
    assert!(
        matches!(error, EffectError::Refused(_) | EffectError::Failed(_)),
        "{error}"
    );
    write(first);
    let soon = tokio::time::timeout(Duration::from_secs(20), async {
        while point().await.is_err() {}
    });
    soon.await.unwrap();
    names.server.take().unwrap().stop().await.unwrap();
}
