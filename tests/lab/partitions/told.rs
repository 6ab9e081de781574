//! What our processes log while a line is cut: that it begins, and that it is over; not each second that
//! it lasts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use failover::engine::situation::AgentFacts;
use failover::lab::network::Namespaces;
use failover::lab::network::Place::{self, Aws, Gcp, Neutral};
use failover::wire::Status;

use super::in_a_network;
use super::lab::Lab;
use crate::stage::{FAST, until, until_status};

/// For how long a line is missed: sixteen reports of an agent, and as many looks of the controller.
const MISSED: Duration = Duration::from_secs(8);

/// So many lines of one kind are a handful.
const HANDFUL: usize = 4;

/// The log of a process.
struct Said {
    path: PathBuf,
    /// How much was in it before the line was cut.
    before: usize,
}

impl Said {
    fn all(lab: &Lab) -> [Said; 3] {
        let dir = &lab.supervisor.layout.dir;
        ["controller.log", "aws/agent.log", "gcp/agent.log"].map(|name| {
            let path = dir.join(name);
            let before = std::fs::read(&path).unwrap().len();
            Said { path, before }
        })
    }

    /// The lines since then.
    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.path).unwrap();
        text[self.before..].lines().map(str::to_owned).collect()
    }

    fn with(&self, words: &str) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line.contains(words));
        lines
    }

    /// Of each kind of line, how often it came: without its time, and whatever its numbers are.
    fn kinds(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for line in self.lines() {
            let kind = line
                .split_once(' ')
                .unwrap()
                .1
                .replace(|it: char| it.is_ascii_digit(), "");
            *kinds.entry(kind).or_default() += 1;
        }
        kinds
    }
}

/// Whether the newest reports of both agents are older than that.
fn missed(status: &Status) -> bool {
    let mut sites = status.situation.sites.values();
    sites.all(|site| site.agent.as_ref().is_some_and(|agent| agent.age > MISSED))
}

/// Whether neither agent had an answer of the other for so long.
fn apart(status: &Status) -> bool {
    let age = |facts: &AgentFacts| facts.peer.is_some_and(|age| age > MISSED);
    let mut sites = status.situation.sites.values();
    sites.all(|site| site.agent.as_ref().is_some_and(|agent| age(&agent.fact)))
}

/// Cuts lines until that is seen, and mends them; what was said until it was over.
async fn cut(
    lab: &mut Lab,
    network: Namespaces,
    lines: &[(Place, Place)],
    seen: fn(&Status) -> bool,
    over: &str,
) -> [Said; 3] {
    let said = Said::all(lab);
    for (one, other) in lines {
        network.cut(*one, *other).unwrap();
        network.cut(*other, *one).unwrap();
    }
    until_status(&lab.supervisor, "the line is missed", seen).await;
    network.mend_all().unwrap();
    lab.supervisor.until_steady().await.unwrap();
    let [_, aws, gcp] = &said;
    until("it is told that it is over", async || {
        [aws, gcp].iter().all(|said| !said.with(over).is_empty())
    })
    .await;
    said
}

/// Each of two agents tells of a silence once or twice (it may end in another way than it began), of its
/// end once, and nobody of anything each second.
fn told(said: &[Said; 3], silent: &str, over: &str) {
    for agent in &said[1..] {
        let (began, ended) = (agent.with(silent), agent.with(over));
        assert!((1..=HANDFUL).contains(&began.len()), "{began:?}");
        assert!(!began[0].contains("lasting"), "{began:?}");
        assert_eq!(ended.len(), 1, "{ended:?}");
        let lasted = ended[0].split_once("lasting.ms=").unwrap().1;
        let lasted: u128 = lasted.split(' ').next().unwrap().parse().unwrap();
        // A report that gets no answer is one only after a second or two.
        assert!(lasted >= MISSED.as_millis() / 2, "{ended:?}");
    }
    for said in said {
        for (kind, times) in said.kinds() {
            let path = said.path.display();
            assert!(times <= HANDFUL, "{path}: {times} times: {kind}");
        }
    }
}

#[test]
fn a_line_that_is_cut_is_told_of_when_it_begins_and_when_it_is_over() {
    let test = "partitions::told::a_line_that_is_cut_is_told_of_when_it_begins_and_when_it_is_over";
    in_a_network(test, |network| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut lab = Box::pin(Lab::start(network, FAST, None)).await;
            let lines = [(Neutral, Aws), (Neutral, Gcp)];
            let over = "the controller answers again";
            let said = cut(&mut lab, network, &lines, missed, over).await;
            told(&said, "the controller does not answer", over);
            let over = "the other agent answers again";
            let said = cut(&mut lab, network, &[(Aws, Gcp)], apart, over).await;
            told(&said, "the other agent does not answer", over);
            lab.end(false).await;
        });
    });
}
