//! What a process proves itself with and whom it believes: read at the start, and again whenever
//! the files change.
//!
//! Certificate and key change together, and may change together with the authorities (one link
//! led elsewhere changes all three) or before or after them. So each look takes of what is new
//! the largest part that fits, and refuses the rest, loudly, until it fits as well.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use super::revoked::Revoked;
use super::trust::{Overdue, Trust};
use super::verifier::Hooks;
use super::{
    Identity, IdentityError, TlsError, TlsFiles, certificate_end, certificates, install_provider,
};
use crate::adapters::clock::SystemClock;
use crate::adapters::keys;
use crate::adapters::reread::{Contents, CredentialBook, Reread};
use crate::engine::units::WallTime;
use crate::ports::Clock;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How many chains are kept from when they were shown until they are proven: more than there are
/// handshakes at once.
const SHOWN: usize = 128;

/// A certificate and what goes with it up to the authority.
pub(super) type Chain = Vec<CertificateDer<'static>>;

/// What a process proves itself with and whom it believes. A clone shares it.
#[derive(Clone)]
pub struct TlsMaterial {
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TlsMaterial({})", self.shared.identity)
    }
}

/// What all connections of a process share.
pub(super) struct Shared {
    files: TlsFiles,
    pub(super) identity: Identity,
    current: RwLock<Arc<Current>>,
    revoked: Option<Reread<Revoked>>,
    /// Counts the changes; whoever holds a connection looks at it again then.
    changes: watch::Sender<u64>,
    peers: Mutex<Peers>,
    book: Arc<CredentialBook>,
}

/// What is in use.
pub(super) struct Current {
    pub(super) pair: Arc<Pair>,
    pub(super) trust: Trust,
    authorities: Arc<Authorities>,
}

/// Our certificate with its key.
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    end: Option<WallTime>,
    contents: Contents,
}

/// Those whose certificates we believe.
struct Authorities {
    all: Chain,
    /// When the last of them ends.
    end: Option<WallTime>,
    contents: Contents,
}

/// Whom we talked to.
#[derive(Default)]
struct Peers {
    shown: VecDeque<Chain>,
    proven: BTreeMap<Identity, Chain>,
}

/// Something new, or why it is of no use; `None`: nothing new.
type Found<T> = Option<Result<Arc<T>, TlsError>>;

impl TlsMaterial {
    /// Reads and checks the files. An expired certificate passes here: a process must be able to
    /// start and say so.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        install_provider();
        let book = Arc::default();
        let authorities = Authorities::read(files)?;
        let (pair, identity) = Pair::read(files)?;
        let revoked = files
            .revoked
            .as_deref()
            .map(|path| Reread::new("revocation list", path, &book, Revoked::from_file));
        let revoked = revoked.transpose()?;
        let listed = revoked.as_ref().map(Reread::get).unwrap_or_default();
        let trust = Trust::new(&authorities.all, listed).map_err(TlsError::Refused)?;
        let current = Current {
            pair: Arc::new(pair),
            authorities: Arc::new(authorities),
            trust,
        };
        let shared = Arc::new(Shared {
            files: files.clone(),
            identity,
            current: RwLock::new(Arc::new(current)),
            revoked,
            changes: watch::Sender::new(0),
            peers: Mutex::default(),
            book,
        });
        shared.note_own();
        Ok(Self { shared })
    }

    /// The same, and what this process knows of its certificates and secrets.
    pub fn with_book(files: &TlsFiles) -> Result<(Self, Arc<CredentialBook>), TlsError> {
        let material = Self::load(files)?;
        let book = material.book();
        Ok((material, book))
    }

    /// Who we are, by our own certificate. Stays so: a new certificate is for the same.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// What this process knows of its certificates and secrets.
    pub fn book(&self) -> Arc<CredentialBook> {
        Arc::clone(&self.shared.book)
    }

    /// Looks at the files for ever.
    pub async fn watch(self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look();
        }
    }

    /// Looks at the files now, and takes what is new and fits.
    pub fn look(&self) {
        self.shared.look();
    }

    /// Whether a key of orders is revoked.
    pub fn has_revoked(&self, key: &keys::VerifyingKey) -> bool {
        self.shared.current().trust.revoked.names_key(key)
    }

    /// For a server that lets nobody in without a certificate of our authority.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let hooks = Arc::new(Hooks(Arc::clone(&self.shared)));
        let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
            .with_client_cert_verifier(Arc::<Hooks>::clone(&hooks))
            .with_cert_resolver(hooks);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// For a client that believes our authority only and shows our certificate.
    pub fn client_config(&self) -> ClientConfig {
        let hooks = Arc::new(Hooks(Arc::clone(&self.shared)));
        let mut config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Hooks>::clone(&hooks))
            .with_client_cert_resolver(hooks);
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }

    /// How often anything has changed; grows with each change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Whether who was let in with a chain would still be; a date alone ends no connection of the
    /// controller or an agent.
    pub(super) fn still_lets_in(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let trust = &self.shared.current().trust;
        trust.client(chain, unix_now(), Overdue::Standing)?;
        if let Some(leaf) = chain.first() {
            self.shared.note_peer(leaf);
        }
        Ok(())
    }
}

impl Pair {
    fn read(files: &TlsFiles) -> Result<(Self, Identity), TlsError> {
        let contents = Contents::of(&[&files.certificate, &files.key]);
        let chain = certificates(&files.certificate)?;
        let leaf = chain.first().ok_or(IdentityError::NoName);
        let end = leaf.as_ref().ok().and_then(|leaf| certificate_end(leaf));
        let identity = leaf.and_then(Identity::of);
        let identity = identity.map_err(|cause| TlsError::NoIdentity {
            path: files.certificate.clone(),
            cause,
        })?;
        let key = PrivateKeyDer::from_pem_slice(&keys::read_secret(&files.key)?);
        let key = key.map_err(|cause| TlsError::Malformed {
            path: files.key.clone(),
            what: "a key",
            cause: cause.to_string(),
        })?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key =
            CertifiedKey::from_der(chain, key, &provider).map_err(|cause| TlsError::Mismatch {
                key: files.key.clone(),
                certificate: files.certificate.clone(),
                cause: cause.to_string(),
            })?;
        let key = Arc::new(key);
        Ok((Self { key, end, contents }, identity))
    }
}

impl Authorities {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let contents = Contents::of(&[&files.ca]);
        let all = certificates(&files.ca)?;
        let malformed = |cause: String| TlsError::Malformed {
            path: files.ca.clone(),
            what: "a certificate authority",
            cause,
        };
        let mut store = rustls::RootCertStore::empty();
        for each in &all {
            let added = store.add(each.clone());
            added.map_err(|cause| malformed(cause.to_string()))?;
        }
        let end = all.iter().filter_map(certificate_end).max();
        Ok(Self { all, end, contents })
    }
}

pub(super) fn unix_now() -> UnixTime {
    unix(SystemClock.wall())
}

fn unix(moment: WallTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(moment.0))
}

impl Shared {
    pub(super) fn current(&self) -> Arc<Current> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody showed a chain that is good; it is not proven yet that it is theirs.
    pub(super) fn shown(&self, chain: &[CertificateDer<'_>]) {
        let owned = chain.iter().map(|each| each.clone().into_owned());
        let owned = owned.collect();
        let mut peers = self.peers();
        peers.shown.retain(|known| *known != owned);
        peers.shown.truncate(SHOWN.saturating_sub(1));
        peers.shown.push_front(owned);
    }

    /// Whoever showed a chain with this leaf holds its key.
    pub(super) fn proven(&self, leaf: &CertificateDer<'_>) {
        let Ok(identity) = Identity::of(leaf) else {
            return;
        };
        let mut peers = self.peers();
        let chain = peers
            .shown
            .iter()
            .position(|chain| chain.first() == Some(leaf))
            .and_then(|at| peers.shown.remove(at));
        if let (Some(chain), Identity::Controller | Identity::Agent { .. }) = (chain, &identity) {
            peers.proven.insert(identity, chain);
        }
    }

    /// Remembers the end of the certificate of somebody who is connected to us. Of those to whom
    /// we connect the newest may be unknown to us for as long as a connection stands; they report
    /// it themselves. A person's is nobody else's business.
    pub(super) fn note_peer(&self, leaf: &CertificateDer<'_>) {
        let Ok(identity) = Identity::of(leaf) else {
            return;
        };
        if matches!(identity, Identity::Operator { .. }) {
            return;
        }
        if let Some(end) = certificate_end(leaf) {
            self.book.saw(&identity.short(), end);
        }
    }

    fn note_own(&self) {
        let current = self.current();
        if let Some(end) = current.pair.end {
            self.book.saw(&self.identity.short(), end);
        }
        if let Some(end) = current.authorities.end {
            self.book.saw("authority", end);
        }
    }

    fn look(&self) {
        let current = self.current();
        let listed = self.revoked.as_ref().map(Reread::get);
        let listed = listed.unwrap_or_else(|| Arc::clone(&current.trust.revoked));
        let pair = self.new_pair(&current);
        let authorities = self.new_authorities(&current);
        let (new_pair, new_authorities) = self.choose(
            &current,
            pair.as_ref().and_then(|found| found.as_ref().ok()),
            authorities.as_ref().and_then(|found| found.as_ref().ok()),
        );
        let fits = |pair: &_| self.fits(&current, Some(pair), None);
        self.tell("certificate and key", pair, new_pair.is_some(), fits);
        let fits = |all: &_| self.fits(&current, None, Some(all));
        self.tell("authorities", authorities, new_authorities.is_some(), fits);
        let relisted = !Arc::ptr_eq(&listed, &current.trust.revoked);
        if relisted || new_pair.is_some() || new_authorities.is_some() {
            let pair = new_pair.unwrap_or_else(|| Arc::clone(&current.pair));
            let authorities = new_authorities.unwrap_or_else(|| Arc::clone(&current.authorities));
            match Trust::new(&authorities.all, listed) {
                Ok(trust) => self.take(Current {
                    pair,
                    trust,
                    authorities,
                }),
                Err(why) => self.book.refuse("authorities and revocation list", why),
            }
        }
        self.note_own();
    }

    fn take(&self, next: Current) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(next);
        drop(current);
        self.book.accept("authorities and revocation list");
        self.changed();
        tracing::info!(identity = %self.identity, "certificates were reloaded");
    }

    /// Has all our connections looked at, and those that we call made anew.
    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn new_pair(&self, current: &Current) -> Found<Pair> {
        let contents = Contents::of(&[&self.files.certificate, &self.files.key]);
        if contents == current.pair.contents {
            return None;
        }
        let read = Pair::read(&self.files).and_then(|(pair, identity)| {
            if identity == self.identity {
                Ok(Arc::new(pair))
            } else {
                Err(TlsError::SomebodyElses {
                    path: self.files.certificate.clone(),
                    found: identity.to_string(),
                    own: self.identity.to_string(),
                })
            }
        });
        Some(read)
    }

    fn new_authorities(&self, current: &Current) -> Found<Authorities> {
        let contents = Contents::of(&[&self.files.ca]);
        (contents != current.authorities.contents)
            .then(|| Authorities::read(&self.files).map(Arc::new))
    }

    /// The largest part of what is new that fits with itself or with what is in use.
    fn choose(
        &self,
        current: &Current,
        pair: Option<&Arc<Pair>>,
        authorities: Option<&Arc<Authorities>>,
    ) -> (Option<Arc<Pair>>, Option<Arc<Authorities>>) {
        let combinations = [(pair, authorities), (None, authorities), (pair, None)];
        let fits = |(pair, authorities): &(Option<&Arc<Pair>>, Option<&Arc<Authorities>>)| {
            self.fits(current, *pair, *authorities).is_ok()
        };
        let found = combinations.into_iter().find(fits).unwrap_or_default();
        (found.0.cloned(), found.1.cloned())
    }

    fn fits(
        &self,
        current: &Current,
        pair: Option<&Arc<Pair>>,
        authorities: Option<&Arc<Authorities>>,
    ) -> Result<(), TlsError> {
        let own = pair.unwrap_or(&current.pair);
        let ca = authorities.unwrap_or(&current.authorities);
        let trust = Trust::new(&ca.all, Arc::default()).map_err(TlsError::Refused)?;
        let now = unix_now();
        // What is in use may have ended; that is no reason to keep its authority from changing.
        let at = match (pair, own.end) {
            (None, Some(end)) => unix(end).min(now),
            (Some(_), _) | (None, None) => now,
        };
        let judged = trust.client(&own.key.cert, at, Overdue::Never);
        judged.map_err(|cause| TlsError::Unfit {
            certificate: self.files.certificate.clone(),
            ca: self.files.ca.clone(),
            cause: cause.to_string(),
        })?;
        if authorities.is_some() {
            self.leaves_nobody_out(&trust, current, now)?;
        }
        Ok(())
    }

    /// Refuses authorities under which the controller or an agent, whose present certificate is
    /// good, would be turned away: they were removed too early.
    fn leaves_nobody_out(
        &self,
        trust: &Trust,
        current: &Current,
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let proven = self.peers().proven.clone();
        let good = |trust: &Trust, chain: &Chain| {
            let judged = trust.client(chain, now, Overdue::Bounded);
            judged.is_ok()
        };
        let mut left_out = proven
            .iter()
            .filter(|(_, chain)| good(&current.trust, chain) && !good(trust, chain));
        match left_out.next() {
            None => Ok(()),
            Some((identity, _)) => Err(TlsError::LeavesOut {
                ca: self.files.ca.clone(),
                identity: identity.clone(),
            }),
        }
    }

    /// Tells why what is new was not taken, or that nothing waits any more.
    fn tell<T>(
        &self,
        what: &str,
        found: Found<T>,
        taken: bool,
        fits: impl FnOnce(&Arc<T>) -> Result<(), TlsError>,
    ) {
        match found {
            Some(Err(why)) => self.book.refuse(what, why.to_string()),
            Some(Ok(part)) if !taken => {
                let why = fits(&part).err();
                if let Some(TlsError::LeavesOut { .. }) = &why {
                    // Perhaps it has another certificate by now, and our connections to it are
                    // older than that: new ones will tell.
                    self.changed();
                }
                let why = why.map_or_else(String::new, |why| why.to_string());
                self.book.refuse(what, why);
            }
            Some(Ok(_)) | None => self.book.accept(what),
        }
    }
}
