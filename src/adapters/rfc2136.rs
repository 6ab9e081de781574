//! Traffic by dynamic update of a DNS zone (RFC 2136) at its primary, signed with TSIG (RFC 8945).
//!
//! A zone knows no weights: a site is on when its addresses are in the record, off when they are
//! not. Each change is one message that replaces the record and the epoch note together, on
//! condition that both are still exactly as they were read: the prerequisites of RFC 2136, section 2.4.
//! The server applies it as a whole or not at all (section 3.4).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigner};

use super::dns::{self, ExchangeError, Lookup, LookupError};
use crate::engine::answer::Answer;
use crate::engine::receipt::Receipt;
use crate::engine::topology::{SiteName, TargetName};
use crate::ports::{
    Clock, Confirmation, EffectError, OutsideFault, OutsideView, Still, Traffic, Versioned,
};

mod held;
mod secret;

use held::Held;
use secret::{SecretFile, bad_signature};

/// How far the two clocks may be apart, in seconds: the value that RFC 8945 recommends.
const FUDGE_SECONDS: u16 = 300;

/// The answers that say that a prerequisite did not hold (RFC 2136, 2.4).
const CONDITION_FAILED: [ResponseCode; 4] = [
    ResponseCode::NXRRSet,
    ResponseCode::YXRRSet,
    ResponseCode::NXDomain,
    ResponseCode::YXDomain,
];

/// The answers that say that the server does not do this for us.
const WILL_NOT: [ResponseCode; 5] = [
    ResponseCode::Refused,
    ResponseCode::NotAuth,
    ResponseCode::NotZone,
    ResponseCode::NotImp,
    ResponseCode::FormErr,
];

/// A key that both sides know. Its algorithm is HMAC-SHA256.
#[derive(Clone)]
pub struct TsigKey {
    /// The name by which the server knows the key.
    pub name: String,
    /// The secret, decoded from its base64 form.
    pub secret: Vec<u8>,
}

impl fmt::Debug for TsigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("TsigKey");
        shown.field("name", &self.name).finish_non_exhaustive()
    }
}

impl TsigKey {
    fn signer(&self) -> Result<TSigner, String> {
        let name = Name::from_ascii(&self.name).map_err(|cause| cause.to_string())?;
        let algorithm = TsigAlgorithm::HmacSha256;
        TSigner::new(self.secret.clone(), algorithm, name, FUDGE_SECONDS)
            .map_err(|cause| cause.to_string())
    }
}

/// What one target is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The target's name.
    pub name: TargetName,
    /// The zone's primary: reads and updates go there, over TCP.
    pub server: SocketAddr,
    /// Every name server that users' resolvers ask. The primary is one of them unless hidden.
    pub authoritative: Vec<SocketAddr>,
    /// The zone, `example.org`.
    pub zone: String,
    /// The record, `app.example.org`; at or below the zone.
    pub record: String,
    /// How long resolvers may keep an answer, in seconds; 60 is usual for a failover record.
    pub ttl_seconds: u32,
    /// What signs the updates.
    pub key: TsigKey,
    /// The addresses of each site; every site has at least one, no two sites share one.
    pub addresses: BTreeMap<SiteName, Vec<IpAddr>>,
    /// How long a server may take: to connect, and again to answer.
    pub timeout: Duration,
}

/// A traffic target in a zone that takes dynamic updates.
#[derive(Debug)]
pub struct Rfc2136 {
    settings: Settings,
    zone: Name,
    record: Name,
    note: Name,
    /// Whose address it is.
    owners: BTreeMap<IpAddr, SiteName>,
    clock: Arc<dyn Clock>,
    /// Where the key's secret is, if it may change; `settings.key` has it otherwise.
    secret: Option<SecretFile>,
}

impl Rfc2136 {
    /// Checks the settings; `Refused` says which one cannot work. Sends nothing.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, EffectError> {
        let wrong = |cause: String| EffectError::Refused(format!("`{}`: {cause}", settings.name));
        let zone = dns::plain_name(&settings.zone).map_err(wrong)?;
        let record = dns::plain_name(&settings.record).map_err(wrong)?;
        let note = dns::note_name(&record).map_err(wrong)?;
        if !zone.zone_of(&record) {
            let text = format!("record `{record}` is not in zone `{zone}`");
            return Err(wrong(text));
        }
        settings
            .key
            .signer()
            .map_err(|cause| wrong(format!("key `{}` cannot sign: {cause}", settings.key.name)))?;
        let mut owners = BTreeMap::new();
        for (site, addresses) in &settings.addresses {
            if addresses.is_empty() {
                return Err(wrong(format!("site `{site}` has no address: name one")));
            }
            for address in addresses {
                if let Some(first) = owners.insert(*address, site.clone()) {
                    let text =
                        format!("address `{address}` belongs to both `{first}` and `{site}`");
                    return Err(wrong(text));
                }
            }
        }
        Ok(Self {
            settings,
            zone,
            record,
            note,
            owners,
            clock,
            secret: None,
        })
    }

    /// The answer that a zone with this content gives; an error that lists what is not ours.
    fn answer(&self, held: &Held) -> Result<Answer, String> {
        let mut weights: BTreeMap<_, _> = self
            .settings
            .addresses
            .keys()
            .map(|site| (site.clone(), 0))
            .collect();
        let mut foreign = Vec::new();
        for address in &held.addresses {
            match self.owners.get(address) {
                Some(site) => {
                    weights.insert(site.clone(), dns::ON);
                }
                None => foreign.push(format!("`{address}`")),
            }
        }
        if !foreign.is_empty() {
            return Err(format!(
                "record `{}` holds addresses of no configured site: {}",
                self.record,
                foreign.join(", ")
            ));
        }
        let epoch = held.note.as_deref().map(dns::note_epoch).transpose()?;
        Ok(Answer { weights, epoch })
    }

    /// The zone's content for an answer; refuses what a zone without weights cannot say.
    fn content(&self, answer: &Answer) -> Result<Held, EffectError> {
        let mut addresses = BTreeSet::new();
        for (site, weight) in &answer.weights {
            let known = self.settings.addresses.get(site);
            match (known, *weight) {
                (_, 0) => {}
                (Some(own), dns::ON) => addresses.extend(own),
                (Some(_), weight) => {
                    return Err(self.refused(format!(
                        "weight {weight} for site `{site}` cannot be written: a plain record \
                         knows only {} (on) and 0 (off)",
                        dns::ON
                    )));
                }
                (None, _) => {
                    return Err(self.refused(format!(
                        "site `{site}` has no addresses here: configure them"
                    )));
                }
            }
        }
        if addresses.is_empty() {
            return Err(self.refused("no site would be left in the record: keep one on".into()));
        }
        let note = dns::note_text(answer);
        Ok(Held { addresses, note })
    }

    /// One message: replace record and note, if both are as they were.
    fn update(&self, old: &Held, new: &Held) -> Message {
        let mut message = Message::query();
        message.metadata.op_code = OpCode::Update;
        message.metadata.recursion_desired = false;
        message.add_query(Query::query(self.zone.clone(), RecordType::SOA));
        for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
            let name = if kind == RecordType::TXT {
                &self.note
            } else {
                &self.record
            };
            let whole = |class| {
                let mut record = Record::update0(name.clone(), 0, kind);
                record.dns_class = class;
                record
            };
            let before = old.records(kind);
            if before.is_empty() {
                message.add_answer(whole(DNSClass::NONE)); // must not exist: 2.4.3
            }
            for data in before {
                message.add_answer(Record::from_rdata(name.clone(), 0, data)); // 2.4.2
            }
            message.add_authority(whole(DNSClass::ANY)); // delete the whole set: 2.5.2
            for data in new.records(kind) {
                let ttl = self.settings.ttl_seconds;
                message.add_authority(Record::from_rdata(name.clone(), ttl, data)); // 2.5.1
            }
        }
        message
    }

    /// An update of the same names and kinds, on the same conditions, that removes what is not
    /// there: the server checks key, right and zone, and changes nothing (RFC 2136, 3.4.2.4).
    fn rehearsal(&self, held: &Held) -> Message {
        let mut message = self.update(held, held);
        let absent = [
            (&self.record, RData::A(Ipv4Addr::UNSPECIFIED.into())),
            (&self.record, RData::AAAA(Ipv6Addr::UNSPECIFIED.into())),
            (&self.note, RData::TXT(TXT::new(vec!["rehearsal".into()]))),
        ];
        let absent = absent.map(|(name, data)| {
            let mut record = Record::from_rdata(name.clone(), 0, data);
            record.dns_class = DNSClass::NONE;
            record
        });
        message.authorities = absent.into();
        message
    }

    /// Sends a signed update, if it still may be sent; what the server says to it.
    async fn send(&self, mut request: Message, still: Still<'_>) -> Result<(), EffectError> {
        let Settings {
            name,
            server,
            timeout,
            ..
        } = &self.settings;
        let key = self.key();
        let unsent = |error: ExchangeError| {
            EffectError::Failed(format!("`{name}`: update at {server}: {error}"))
        };
        let stream = dns::connect_tcp(*server, *timeout).await.map_err(unsent)?;
        let signer = key.signer().map_err(|cause| self.refused(cause))?;
        let seconds = self.clock.wall().0 / 1000;
        let verifier = request
            .finalize(&signer, seconds)
            .map_err(|cause| self.refused(cause.to_string()))?;
        let bytes = request
            .to_vec()
            .map_err(|cause| self.refused(cause.to_string()))?;
        still()?;
        let reply = dns::exchange(stream, &bytes, *timeout)
            .await
            .map_err(|error| {
                let text = format!("`{name}`: update at {server}: {error}");
                match error {
                    ExchangeError::NotSent(_) | ExchangeError::Timeout { sent: false, .. } => {
                        EffectError::Failed(text)
                    }
                    ExchangeError::Lost(_) | ExchangeError::Timeout { sent: true, .. } => {
                        EffectError::Unknown(text)
                    }
                }
            })?;
        let unproven = |cause: &dyn fmt::Display| {
            EffectError::Unknown(format!(
                "`{name}`: the answer of {server} is not authenticated: {cause}"
            ))
        };
        let message = Message::from_vec(&reply).map_err(|cause| unproven(&cause))?;
        if message.id != request.id {
            return Err(unproven(&"it belongs to another message"));
        }
        let said = self.verdict(&message);
        self.judged(key, said)?;
        let Some(mut verifier) = verifier else {
            return Err(unproven(&"the request was not signed"));
        };
        verifier.verify(&reply).map_err(|cause| unproven(&cause))?;
        Ok(())
    }

    fn lookup(&self, name: &Name, kind: RecordType) -> Lookup {
        Lookup {
            name: name.clone(),
            kind,
            timeout: self.settings.timeout,
        }
    }

    /// The three questions that tell what a server holds.
    fn lookups(&self) -> [Lookup; 3] {
        [
            self.lookup(&self.record, RecordType::A),
            self.lookup(&self.record, RecordType::AAAA),
            self.lookup(&self.note, RecordType::TXT),
        ]
    }

    fn refused(&self, cause: String) -> EffectError {
        EffectError::Refused(format!("`{}`: {cause}", self.settings.name))
    }

    /// What the server's word about an update means. Only a yes needs a valid signature: a forged
    /// no makes nobody believe in a change that is not there.
    fn verdict(&self, reply: &Message) -> Result<(), EffectError> {
        let Settings { server, key, .. } = &self.settings;
        let signing = reply.signature().and_then(|record| record.data.error);
        if let Some(error) = signing {
            return Err(self.refused(bad_signature(error, server, key)));
        }
        let code = reply.response_code;
        let text = format!("server {server} answers `{code}` to the update");
        if code == ResponseCode::NoError {
            return Ok(());
        }
        if CONDITION_FAILED.contains(&code) {
            return Err(EffectError::Conflict(format!(
                "`{}`: `{}` or its note is not what was read: {text}",
                self.settings.name, self.record
            )));
        }
        if WILL_NOT.contains(&code) {
            return Err(self.refused(format!(
                "{text}: it must be the primary of zone `{}` and allow updates with key `{}` from \
                 this address",
                self.zone, key.name
            )));
        }
        // A server that fails may have failed after the change, or while passing it on.
        let name = &self.settings.name;
        Err(EffectError::Unknown(format!("`{name}`: {text}")))
    }
}

#[async_trait]
impl Traffic for Rfc2136 {
    fn name(&self) -> &TargetName {
        &self.settings.name
    }

    async fn read(&self) -> Result<Versioned, EffectError> {
        let server = self.settings.server;
        let [a, aaaa, note] = self.lookups();
        let answers = tokio::join!(
            a.ask_tcp(server),
            aaaa.ask_tcp(server),
            note.ask_tcp(server)
        );
        let answers = <[_; 3]>::from(answers);
        for error in answers.iter().filter_map(|answer| answer.as_ref().err()) {
            let text = || format!("cannot read `{}` from {server}: {error}", self.record);
            match error {
                LookupError::NxDomain => {}
                LookupError::Refused | LookupError::NotAuthoritative => {
                    return Err(self.refused(text()));
                }
                LookupError::Timeout(_) | LookupError::Other(_) => {
                    let name = &self.settings.name;
                    return Err(EffectError::Failed(format!("`{name}`: {}", text())));
                }
            }
        }
        let held = Held::gather(answers).map_err(|cause| self.refused(cause.to_string()))?;
        let answer = self.answer(&held).map_err(|cause| {
            self.refused(format!(
                "{cause}: remove them, or configure the site they belong to"
            ))
        })?;
        let token =
            serde_json::to_string(&held).map_err(|cause| self.refused(cause.to_string()))?;
        Ok(Versioned { answer, token })
    }

    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        _note: &str,
        still: Still<'_>,
    ) -> Result<Receipt, EffectError> {
        let old: Held = serde_json::from_str(&from.token)
            .map_err(|cause| self.refused(format!("the token is for another target: {cause}")))?;
        let new = self.content(to)?;
        self.send(self.update(&old, &new), still).await?;
        let shown = |held: &Held| held.shown(&self.record, &self.note);
        let receipt = Receipt::replacing(shown(&old), shown(&new));
        // The update's answer does not name the zone's new serial, and a receipt without one still
        // is one.
        let soa = self.lookup(&self.zone, RecordType::SOA);
        Ok(match serial(soa.ask_tcp(self.settings.server).await) {
            Some(serial) => receipt.named(SERIAL, serial.to_string()),
            None => receipt,
        })
    }

    /// Every name server that resolvers ask has the zone of that serial, or a later one.
    async fn confirm(&self, receipt: &Receipt) -> Result<Confirmation, EffectError> {
        let written = receipt
            .ids
            .get(SERIAL)
            .and_then(|serial| serial.parse().ok());
        let written: u32 = written
            .ok_or_else(|| self.refused("the receipt has no serial of the zone".to_owned()))?;
        let soa = self.lookup(&self.zone, RecordType::SOA);
        let seen = dns::at_each(&self.settings.authoritative, |server| {
            let soa = soa.clone();
            async move { serial(soa.ask(server).await) }
        })
        .await;
        let has = |serial: Option<u32>| serial.is_some_and(|serial| !is_before(serial, written));
        Ok(if seen.into_iter().all(|(_, serial)| has(serial)) {
            Confirmation::Made
        } else {
            Confirmation::Pending
        })
    }

    async fn rehearse(&self, from: &Versioned) -> Result<(), EffectError> {
        let held: Held = serde_json::from_str(&from.token)
            .map_err(|cause| self.refused(format!("the token is for another target: {cause}")))?;
        self.send(self.rehearsal(&held), &|| Ok(())).await
    }

    async fn verify_outside(&self) -> Vec<OutsideView> {
        let lookups = self.lookups();
        let seen = dns::at_each(&self.settings.authoritative, |server| {
            let [a, aaaa, note] = lookups.clone();
            async move {
                <[_; 3]>::from(tokio::join!(
                    a.ask(server),
                    aaaa.ask(server),
                    note.ask(server)
                ))
            }
        })
        .await;
        seen.into_iter()
            .map(|(server, answers)| OutsideView {
                place: server.to_string(),
                answer: Held::gather(answers)
                    .and_then(|held| self.answer(&held).map_err(OutsideFault::Wrong)),
            })
            .collect()
    }
}

/// The name of the zone's serial in a receipt.
const SERIAL: &str = "serial";

/// The serial in an answer to the question for the zone's SOA record.
fn serial(answer: Result<Vec<RData>, LookupError>) -> Option<u32> {
    let RData::SOA(soa) = answer.ok()?.into_iter().next()? else {
        return None;
    };
    Some(soa.serial)
}

/// Whether one serial comes before another: they go round (RFC 1982, 3.2).
fn is_before(serial: u32, other: u32) -> bool {
    let ahead = other.wrapping_sub(serial);
    ahead != 0 && ahead < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::is_before;

    #[test]
    fn serials_go_round() {
        assert!(is_before(1, 2) && !is_before(2, 1) && !is_before(2, 2));
        assert!(is_before(u32::MAX, 0) && !is_before(0, u32::MAX));
    }
}
