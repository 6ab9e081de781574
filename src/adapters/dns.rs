//! Questions put directly to name servers, without a resolver and its cache, and the note about
//! the epoch that traffic targets made of DNS records carry beside them.
//!
//! Holds nothing about what a record means to a group; that is the business of the targets.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::engine::answer::Answer;
use crate::engine::topology::SiteName;
use crate::engine::units::Epoch;
use crate::ports::OutsideFault;

/// The weight of a site that is on, where a target only knows on and off.
pub const ON: u16 = 100;

/// One question: which records of this type does this name have?
#[derive(Debug, Clone)]
pub struct Lookup {
    /// The name, complete (with its final dot).
    pub name: Name,
    /// The type of record.
    pub kind: RecordType,
    /// How long one server may take for all of it, TCP after a truncated answer included.
    pub timeout: Duration,
}

/// Why a name server did not answer a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Nothing came back in time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The server refuses to answer this name to us.
    #[error("the server refuses the question: does it serve the zone, and to this address?")]
    Refused,
    /// The answer is not first-hand: a resolver, or a server that does not serve the zone.
    #[error("the server is not authoritative for the name: is it in the zone's delegation?")]
    NotAuthoritative,
    /// The server is authoritative, and says that the name does not exist.
    #[error("the name does not exist")]
    NxDomain,
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl From<LookupError> for OutsideFault {
    /// A name that does not exist is an answer, and users get nothing by it. With anything else a
    /// resolver goes on to the next name server.
    fn from(error: LookupError) -> Self {
        let text = error.to_string();
        match error {
            LookupError::NxDomain => OutsideFault::Wrong(text),
            LookupError::Timeout(_)
            | LookupError::Refused
            | LookupError::NotAuthoritative
            | LookupError::Other(_) => OutsideFault::Unseen(text),
        }
    }
}

impl Lookup {
    /// Asks one server over UDP, and over TCP where the answer was cut short.
    /// The data of the name's own records of this type; a `CNAME` in their place is given as it
    /// is. Empty where the name exists without such records.
    pub async fn ask(&self, server: SocketAddr) -> Result<Vec<RData>, LookupError> {
        let both = async {
            let request = self.request();
            let reply = ask_udp(server, &request).await?;
            if reply.truncation {
                self.ask_tcp(server).await
            } else {
                self.records(&request, &reply)
            }
        };
        match tokio::time::timeout(self.timeout, both).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(LookupError::Timeout(self.timeout)),
        }
    }

    /// Asks one server over TCP only: an answer that nobody beside the path can forge.
    pub async fn ask_tcp(&self, server: SocketAddr) -> Result<Vec<RData>, LookupError> {
        let request = self.request();
        let bytes = request.to_vec().map_err(other)?;
        let failed = |error| match error {
            ExchangeError::Timeout { .. } => LookupError::Timeout(self.timeout),
            ExchangeError::NotSent(_) | ExchangeError::Lost(_) => other(error),
        };
        let stream = connect_tcp(server, self.timeout).await.map_err(failed)?;
        let reply = exchange(stream, &bytes, self.timeout)
            .await
            .map_err(failed)?;
        self.records(&request, &Message::from_vec(&reply).map_err(other)?)
    }

    fn request(&self) -> Message {
        let mut message = Message::query();
        message.metadata.op_code = OpCode::Query;
        message.metadata.recursion_desired = false;
        message.add_query(Query::query(self.name.clone(), self.kind));
        message
    }

    fn records(&self, request: &Message, reply: &Message) -> Result<Vec<RData>, LookupError> {
        if reply.id != request.id || reply.queries != request.queries {
            return Err(other("the answer belongs to another question"));
        }
        let code = reply.response_code;
        if code == ResponseCode::Refused {
            return Err(LookupError::Refused);
        }
        if code != ResponseCode::NoError && code != ResponseCode::NXDomain {
            return Err(other(format!("the server answers `{code}`")));
        }
        if !reply.authoritative {
            return Err(LookupError::NotAuthoritative);
        }
        if code == ResponseCode::NXDomain {
            return Err(LookupError::NxDomain);
        }
        let ours = reply.answers.iter().filter(|record| {
            let kind = record.record_type();
            let wanted = kind == self.kind || kind == RecordType::CNAME;
            wanted && record.name == self.name && record.dns_class == DNSClass::IN
        });
        Ok(ours.map(|record| record.data.clone()).collect())
    }
}

/// Asks every server at the same time; the answers in the order of the servers.
pub async fn ask_all(
    servers: &[SocketAddr],
    lookup: &Lookup,
) -> Vec<(SocketAddr, Result<Vec<RData>, LookupError>)> {
    at_each(servers, |server| {
        let lookup = lookup.clone();
        async move { lookup.ask(server).await }
    })
    .await
}

/// Does the same at every server at the same time; the results in the order of the servers.
pub async fn at_each<T, F, W>(servers: &[SocketAddr], work: F) -> Vec<(SocketAddr, T)>
where
    T: Send + 'static,
    F: Fn(SocketAddr) -> W,
    W: Future<Output = T> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (place, server) in servers.iter().enumerate() {
        let result = work(*server);
        let server = *server;
        tasks.spawn(async move { (place, (server, result.await)) });
    }
    let done: BTreeMap<usize, (SocketAddr, T)> = tasks.join_all().await.into_iter().collect();
    done.into_values().collect()
}

/// Why an exchange over TCP gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// There was no connection: the server certainly did not get the request.
    #[error("no connection: {0}")]
    NotSent(String),
    /// Time ran out.
    #[error("no answer within {}", humantime::format_duration(*.after))]
    Timeout {
        /// Whether (part of) the request may have reached the server.
        sent: bool,
        /// The limit.
        after: Duration,
    },
    /// The connection was lost after (part of) the request was sent.
    #[error("the connection was lost: {0}")]
    Lost(String),
}

/// A TCP connection for one exchange.
pub async fn connect_tcp(
    server: SocketAddr,
    timeout: Duration,
) -> Result<TcpStream, ExchangeError> {
    match tokio::time::timeout(timeout, TcpStream::connect(server)).await {
        Ok(connected) => connected.map_err(|error| ExchangeError::NotSent(error.to_string())),
        Err(_elapsed) => Err(ExchangeError::Timeout {
            sent: false,
            after: timeout,
        }),
    }
}

/// Sends one message over a connection of its own, and receives one, within `timeout`.
pub async fn exchange(
    mut stream: TcpStream,
    request: &[u8],
    timeout: Duration,
) -> Result<Vec<u8>, ExchangeError> {
    let length = u16::try_from(request.len())
        .map_err(|_too_long| ExchangeError::NotSent("the message is too long for DNS".into()))?;
    let framed = [&length.to_be_bytes(), request].concat();
    let exchange = async {
        stream.write_all(&framed).await?;
        let mut reply = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut reply).await?;
        Ok::<_, std::io::Error>(reply)
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(reply) => reply.map_err(|error| ExchangeError::Lost(error.to_string())),
        Err(_elapsed) => Err(ExchangeError::Timeout {
            sent: true,
            after: timeout,
        }),
    }
}

/// The largest UDP answer without EDNS (RFC 1035, 4.2.1).
const UDP_LIMIT: usize = 512;

async fn ask_udp(server: SocketAddr, request: &Message) -> Result<Message, LookupError> {
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    // A new socket for each question has a new random port; a connected one takes datagrams of
    // this server only.
    let socket = UdpSocket::bind(any).await.map_err(other)?;
    socket.connect(server).await.map_err(other)?;
    let bytes = request.to_vec().map_err(other)?;
    socket.send(&bytes).await.map_err(other)?;
    let mut buffer = [0; UDP_LIMIT];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(other)?;
        let reply = buffer.get(..length).map(Message::from_vec);
        // Whatever is not the answer to this very question may be forged: go on waiting.
        if let Some(Ok(reply)) = reply
            && reply.id == request.id
            && reply.queries == request.queries
        {
            return Ok(reply);
        }
    }
}

fn other(cause: impl fmt::Display) -> LookupError {
    LookupError::Other(cause.to_string())
}

/// Checks a complete name of letters, digits, hyphens and underscores.
/// The error says what is wrong, and how to write it.
pub fn plain_name(text: &str) -> Result<Name, String> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let labels = bare.split('.');
    if !labels.clone().all(|label| label.bytes().all(legal)) || labels.count() < 2 {
        return Err(format!(
            "`{text}` is not a record name: write it like `www.example.org`"
        ));
    }
    let mut name = Name::from_ascii(bare.to_ascii_lowercase())
        .map_err(|cause| format!("`{text}` is not a record name: {cause}"))?;
    name.set_fqdn(true);
    Ok(name)
}

/// The name of the TXT record beside `record` that holds the epoch note.
pub fn note_name(record: &Name) -> Result<Name, String> {
    record
        .prepend_label("_failover")
        .map_err(|cause| format!("`{record}` has no room for `_failover` before it: {cause}"))
}

/// The epoch note of an answer, `epoch=7 site=gcp`; `None` where the answer has no epoch.
pub fn note_text(answer: &Answer) -> Option<String> {
    let sites: Vec<_> = answer.sites_on().map(SiteName::as_str).collect();
    let epoch = answer.epoch?;
    Some(format!("epoch={epoch} site={}", sites.join(",")))
}

/// The epoch in a note; an error for a text that is not of our making.
pub fn note_epoch(text: &str) -> Result<Epoch, String> {
    text.strip_prefix("epoch=")
        .and_then(|rest| rest.split_once(" site="))
        .and_then(|(epoch, _site)| epoch.parse().ok())
        .map(Epoch)
        .ok_or_else(|| format!("`{text}` is not a note of ours like `epoch=7 site=gcp`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_note_reads_back_what_was_written() {
        let weights = [("aws", 0), ("gcp", 100)];
        let weights = weights.map(|(site, weight)| (site.parse().unwrap(), weight));
        let mut answer = Answer {
            weights: weights.into(),
            epoch: Some(Epoch(7)),
        };
        assert_eq!(note_text(&answer).as_deref(), Some("epoch=7 site=gcp"));
        assert_eq!(note_epoch("epoch=7 site=gcp"), Ok(Epoch(7)));
        answer.epoch = None;
        assert_eq!(note_text(&answer), None);
    }

    #[test]
    fn a_note_of_somebody_else_is_not_an_epoch() {
        for text in ["", "epoch=7", "epoch= site=a", "v=spf1", "epoch=-1 site=a"] {
            assert!(note_epoch(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_checked_and_completed() {
        assert_eq!(
            plain_name("App.Example.org").unwrap().to_string(),
            "app.example.org."
        );
        for text in [
            "",
            ".",
            "org",
            "*.example.org",
            "a b.org",
            "a..org",
            "-\u{e9}.org",
        ] {
            assert!(plain_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_the_first_hand_answer_to_this_question_counts() {
        let lookup = Lookup {
            name: plain_name("app.example.org").unwrap(),
            kind: RecordType::A,
            timeout: Duration::from_secs(1),
        };
        let request = lookup.request();
        let judge = |change: &dyn Fn(&mut Message)| {
            let mut reply = Message::response(request.id, OpCode::Query);
            reply.queries.clone_from(&request.queries);
            reply.metadata.authoritative = true;
            change(&mut reply);
            lookup.records(&request, &reply)
        };
        let says = |code| judge(&|reply: &mut Message| reply.metadata.response_code = code);
        assert_eq!(judge(&|_| {}), Ok(Vec::new()));
        assert_eq!(says(ResponseCode::NXDomain), Err(LookupError::NxDomain));
        assert_eq!(says(ResponseCode::Refused), Err(LookupError::Refused));
        assert!(matches!(
            says(ResponseCode::ServFail),
            Err(LookupError::Other(_))
        ));
        for code in [ResponseCode::NoError, ResponseCode::NXDomain] {
            let second_hand = judge(&|reply| {
                reply.metadata.authoritative = false;
                reply.metadata.response_code = code;
            });
            assert_eq!(second_hand, Err(LookupError::NotAuthoritative));
        }
        assert!(judge(&|reply| reply.queries.clear()).is_err());
        assert!(judge(&|reply| reply.metadata.id = !request.id).is_err());
    }

    #[tokio::test]
    async fn a_silent_server_is_a_timeout_and_the_others_still_answer_in_order() {
        let mute = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = [mute.local_addr().unwrap(), closed.local_addr().unwrap()];
        drop(closed);
        let lookup = Lookup {
            name: plain_name("app.example.org").unwrap(),
            kind: RecordType::A,
            timeout: Duration::from_millis(100),
        };
        let answers = ask_all(&servers, &lookup).await;
        assert_eq!(
            answers[0],
            (servers[0], Err(LookupError::Timeout(lookup.timeout)))
        );
        assert_eq!(answers[1].0, servers[1]);
        assert!(answers[1].1.is_err());
    }
}
