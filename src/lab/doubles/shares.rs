//! A name server that answers a name with one of several record sets, each as often as its weight
//! says: what the managed zones of the clouds do, and no ordinary name server does.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// How long an answer may be kept, in seconds: short, so that a client in the lab follows at once.
const TTL: u32 = 1;

/// A record set and how often it is answered, against the other ones of its name and type.
#[derive(Debug, Clone)]
pub struct Share {
    /// Zero is never, where another is more.
    pub weight: u32,
    /// The records.
    pub data: Vec<RData>,
}

#[derive(Debug, Default)]
struct Zone {
    names: BTreeMap<(Name, RecordType), Vec<Share>>,
    asked: u32,
}

/// A running name server. It ends with this value.
#[derive(Debug)]
pub struct Shares {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    task: JoinHandle<()>,
}

impl Shares {
    /// Answers at this address, over UDP, with authority and without any records yet.
    pub async fn start(at: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(at).await?;
        let address = socket.local_addr()?;
        let zone = Arc::<Mutex<Zone>>::default();
        let task = tokio::spawn(serve(socket, Arc::clone(&zone)));
        Ok(Self {
            address,
            zone,
            task,
        })
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it answers from now on, whole.
    pub fn hold(&self, names: BTreeMap<(Name, RecordType), Vec<Share>>) {
        let mut zone = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        zone.names = names;
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question).await {
        let asked = question.get(..length).map(Message::from_vec);
        let Some(Ok(asked)) = asked else {
            continue;
        };
        let answer = {
            let mut zone = zone.lock().unwrap_or_else(PoisonError::into_inner);
            zone.answer(&asked)
        };
        if let Ok(bytes) = answer.to_vec()
            && let Err(error) = socket.send_to(&bytes, from).await
        {
            tracing::debug!(%error, %from, "an answer was not sent");
        }
    }
}

impl Zone {
    fn answer(&mut self, asked: &Message) -> Message {
        let mut answer = Message::response(asked.id, OpCode::Query);
        answer.queries.clone_from(&asked.queries);
        answer.metadata.authoritative = true;
        let Some(query) = asked.queries.first() else {
            answer.metadata.response_code = ResponseCode::FormErr;
            return answer;
        };
        let (name, kind) = (query.name(), query.query_type());
        if !self.names.keys().any(|(known, _)| known == name) {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        for data in self.drawn(name, kind) {
            answer.add_answer(Record::from_rdata(name.clone(), TTL, data));
        }
        answer
    }

    /// The record set whose turn it is. Each is answered as often as its weight says, one after the
    /// other; where all weights are zero, all are answered alike, as the clouds do.
    fn drawn(&mut self, name: &Name, kind: RecordType) -> Vec<RData> {
        let Some(shares) = self.names.get(&(name.clone(), kind)) else {
            return Vec::new();
        };
        let nobody = shares.iter().all(|share| share.weight == 0);
        let weight = |share: &Share| if nobody { 1 } else { share.weight };
        let total: u32 = shares.iter().map(weight).sum();
        self.asked = self.asked.wrapping_add(1);
        let Some(mut turn) = self.asked.checked_rem(total) else {
            return Vec::new();
        };
        for share in shares {
            match turn.checked_sub(weight(share)) {
                Some(left) => turn = left,
                None => return share.data.clone(),
            }
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_answered_as_often_as_its_weight_says_and_none_weighing_nothing() {
        let share = |weight, last| Share {
            weight,
            data: vec![RData::A(std::net::Ipv4Addr::new(192, 0, 2, last).into())],
        };
        let name = Name::from_ascii("app.shop.test.").unwrap();
        let count = |weights: [u32; 2]| {
            let shares = vec![share(weights[0], 1), share(weights[1], 2)];
            let names = [((name.clone(), RecordType::A), shares)].into();
            let mut zone = Zone { names, asked: 0 };
            let first = |_| zone.drawn(&name, RecordType::A) == share(0, 1).data;
            (0..100).map(first).filter(|first| *first).count()
        };
        assert_eq!(count([100, 0]), 100);
        assert_eq!(count([0, 100]), 0);
        assert_eq!(count([25, 75]), 25);
        assert_eq!(count([0, 0]), 50);
    }
}
