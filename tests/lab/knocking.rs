//! A lab at whose doors somebody knocks hundreds of times a second: production goes on, and whoever
//! has a good certificate is let in, however slowly.
#![expect(clippy::print_stdout, reason = "floods print what they measured")]

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use failover::adapters::clock::SystemClock;
use failover::adapters::tls::TlsMaterial;
use failover::engine::units::Epoch;
use failover::lab::client::{Report, present_numbers};
use failover::lab::scenario::start_client;
use failover::lab::supervisor::Supervisor;
use failover::ports::Clock;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::stage::{on_a_lab, written_at};

/// Where the flood comes from.
const FLOOD: Ipv4Addr = Ipv4Addr::new(127, 66, 66, 66);
/// An operator whom nobody has seen yet.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 77, 77, 77);
/// How long it goes on.
const LASTING: Duration = Duration::from_secs(6);
/// How long a slow but honest client takes before its first byte: three ways there and back of
/// 80 ms. A door that shows out the oldest of all shows it out at 700 others a second.
const SLOW: Duration = Duration::from_millis(240);

async fn connect(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((IpAddr::V4(from), 0).into())?;
    socket.connect(to).await
}

/// Opens connections and says nothing on them, so many a second.
async fn knock(to: SocketAddr, every: Duration, stop: Arc<AtomicBool>) -> usize {
    let mut held = VecDeque::new();
    let mut knocked = 0;
    while !stop.load(Ordering::Relaxed) {
        // One that cannot connect is as much of a flood.
        if let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_secs(1), connect(FLOOD, to)).await
        {
            held.push_back(stream);
            knocked += 1;
        }
        if held.len() > 200 {
            held.pop_front();
        }
        tokio::time::sleep(every).await;
    }
    knocked
}

/// Asks with an operator's certificate, slowly, over a connection of its own.
async fn ask(lab: &Asked, from: Ipv4Addr) -> Result<(), String> {
    let said = |cause: std::io::Error| cause.to_string();
    let name = ServerName::try_from("controller.failover.internal").unwrap();
    let stream = connect(from, lab.controller).await.map_err(said)?;
    tokio::time::sleep(SLOW).await;
    let mut stream = lab.tls.connect(name, stream).await.map_err(said)?;
    let request = b"GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.map_err(said)?;
    let mut answer = Vec::new();
    // Whoever closes without a word more has answered all the same.
    stream.read_to_end(&mut answer).await.unwrap_or_default();
    if answer.starts_with(b"HTTP/1.1 200") {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned())
    }
}

struct Asked {
    controller: SocketAddr,
    tls: tokio_rustls::TlsConnector,
}

/// A page in plain HTTP.
async fn page(at: SocketAddr, path: &str) -> String {
    let Ok(mut stream) = connect(STRANGER, at).await else {
        return String::new();
    };
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .unwrap_or_default();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap_or_default();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The most memory, in MiB, that each process of the lab with this word in its command line had.
fn peaks(lab: &Supervisor, word: &str) -> Vec<u64> {
    let dir = lab.layout.dir.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let read =
            |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let line = read("cmdline").replace('\0', " ");
        if line.contains(&dir) && line.contains(word) {
            let status = read("status");
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = peak.and_then(|peak| peak.split_whitespace().next()?.parse::<u64>().ok());
            found.extend(kib.map(|kib| kib / 1024));
        }
    }
    found
}

#[test]
fn hundreds_of_mute_handshakes_a_second_cost_no_grant_no_write_and_no_slow_client() {
    let test =
        "knocking::hundreds_of_mute_handshakes_a_second_cost_no_grant_no_write_and_no_slow_client";
    on_a_lab(test, async |lab| {
        let [aws, gcp] = lab.layout.sites.clone();
        let mut client = start_client(lab).unwrap();
        client
            .until(|attempts| written_at(attempts, "aws") >= 50)
            .await
            .unwrap();
        let material = TlsMaterial::load(&lab.layout.operator).unwrap();
        let asked = Arc::new(Asked {
            controller: lab.layout.controller,
            tls: tokio_rustls::TlsConnector::from(Arc::new(material.client_config())),
        });

        let stop = Arc::new(AtomicBool::new(false));
        let mut floods = Vec::new();
        // Some 700 a second at the controller, and as many at the agents and their plain pages.
        for (to, tasks) in [
            (lab.layout.controller, 2),
            (aws.agent, 1),
            (gcp.agent, 1),
            (aws.agent_plain, 1),
            (lab.layout.controller_plain, 1),
        ] {
            for _ in 0..tasks {
                let every = Duration::from_millis(2);
                floods.push(tokio::spawn(knock(to, every, Arc::clone(&stop))));
            }
        }
        let slow_failed = Arc::new(AtomicUsize::new(0));
        let slow_done = Arc::new(AtomicUsize::new(0));
        // One place that is known because agents come from there, and one that nobody knows.
        let asking = [Ipv4Addr::LOCALHOST, STRANGER].map(|from| {
            let (asked, stop) = (Arc::clone(&asked), Arc::clone(&stop));
            let (done, failed) = (Arc::clone(&slow_done), Arc::clone(&slow_failed));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    match ask(&asked, from).await {
                        Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                        Err(why) => {
                            println!("a slow client from {from} was not let in: {why}");
                            failed.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            })
        });

        let began = SystemClock.now();
        let before = client.attempts().len();
        let (mut held, mut looks) = (0, 0);
        while SystemClock.now().since(began) < LASTING {
            let metrics = page(aws.agent_plain, "/metrics").await;
            let holds = r#"failover_agent_holds_right{group="shop",site="aws"} 1"#;
            held += usize::from(metrics.contains(holds));
            looks += 1;
            lab.look().unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let ready = page(lab.layout.controller_plain, "/readyz").await;
        stop.store(true, Ordering::Relaxed);
        let mut knocked = 0;
        for flood in floods {
            knocked += flood.await.unwrap();
        }
        for each in asking {
            each.await.unwrap();
        }
        let took = SystemClock.now().since(began).as_secs_f64();
        let attempts = client.stop().await.unwrap();
        let report = Report::new(&attempts, &present_numbers(aws.api).await.unwrap());
        let lost = report.lost.len();
        let (controller, agents) = (peaks(lab, " run "), peaks(lab, " agent "));
        let (done, failed) = (
            slow_done.load(Ordering::Relaxed),
            slow_failed.load(Ordering::Relaxed),
        );
        let rate = f64::from(u32::try_from(knocked).unwrap()) / took;
        println!(
            "{knocked} mute connections in {took:.1} s ({rate:.0} a second): the right held at {held} of {looks} looks, {} writes, {lost} lost; {done} slow clients let in, {failed} not; peak memory {controller:?} MiB of the controller, {agents:?} MiB of agents",
            attempts.len() - before
        );
        assert!(rate > 300.0, "that was no flood");
        assert_eq!((held, lost, failed), (looks, 0, 0));
        assert!(done >= 10, "{done}");
        assert!(ready.starts_with("HTTP/1.1 "), "{ready}");
        assert!(controller.iter().chain(&agents).all(|peak| *peak < 256));
        let status = lab.status().await.unwrap();
        assert_eq!(status.situation.epoch, Epoch(1), "nothing was moved");
        assert!(
            report
                .longest_gap()
                .is_none_or(|gap| gap.length_ms() < 2000)
        );
    });
}
