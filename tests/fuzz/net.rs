//! Answers from the network: a name server, and a service, that say anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::adapters::dns::{Lookup, plain_name};
use failover::adapters::http::{HttpProber, Roots};
use hickory_proto::op::{Message, MessageType, OpCode};
use hickory_proto::rr::{RData, Record, RecordType, rdata};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::{Builder, Runtime};

use super::fuzz;

/// Short: most damaged answers are no answers, and are waited for until then.
const PATIENCE: Duration = Duration::from_millis(5);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn answers_of_name_servers() {
    let name = plain_name("shop.lab.test").unwrap();
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.authoritative = true;
    message.add_answer(Record::from_rdata(
        name.clone(),
        5,
        RData::A(rdata::A::new(127, 0, 0, 1)),
    ));
    let txt = rdata::TXT::new(vec!["epoch=7 site=gcp".to_owned()]);
    message.add_answer(Record::from_rdata(name.clone(), 5, RData::TXT(txt)));
    let sample = message.to_vec().unwrap();
    let runtime = runtime();
    let server = runtime.block_on(UdpSocket::bind("127.0.0.1:0")).unwrap();
    let address: SocketAddr = server.local_addr().unwrap();
    let lookup = Lookup {
        name,
        kind: RecordType::A,
        timeout: PATIENCE,
    };
    fuzz("dns", &[sample], |input| {
        runtime.block_on(async {
            let answer = async {
                let mut question = [0u8; 1500];
                let (length, from) = server.recv_from(&mut question).await.unwrap();
                let mut answer = input.to_vec();
                // With the question's own number, so that it is looked at.
                if let (Some(to), Some(id)) = (answer.get_mut(..2), question[..length].get(..2)) {
                    to.copy_from_slice(id);
                }
                server
                    .send_to(&answer[..answer.len().min(1400)], from)
                    .await
                    .unwrap();
            };
            let (asked, ()) = tokio::join!(lookup.ask(address), answer);
            drop(asked);
        });
    });
}

#[test]
fn answers_of_services() {
    let samples: Vec<Vec<u8>> = [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-failover-site: gcp\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    let runtime = runtime();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/healthz", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let ca = tempfile::tempdir().unwrap();
    let authority = failover::adapters::certificates::Authority::create(
        ca.path(),
        failover::ports::Clock::wall(&SystemClock),
        Duration::from_secs(3600),
    );
    authority.unwrap();
    let roots = Roots::File(ca.path().join("ca.pem"));
    let prober = HttpProber::new(&roots, Arc::new(SystemClock)).unwrap();
    fuzz("http", &samples, |input| {
        runtime.block_on(async {
            let answer = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut question = [0u8; 1500];
                // The prober may have gone away: then there is nothing to see.
                if stream.read(&mut question).await.is_ok() {
                    stream.write_all(input).await.unwrap_or_default();
                }
            };
            let (seen, ()) =
                tokio::join!(prober.probe(&url, PATIENCE, &["x-failover-site"]), answer);
            if let Ok(seen) = seen {
                assert!((200..300).contains(&seen.status) && seen.body.len() <= 64 * 1024);
            }
        });
    });
}
