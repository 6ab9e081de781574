//! What an earlier program sent is read with the same meaning, and what this one sends that program could
//! read: all that it knew stands there as it stood then, and it takes no notice of the rest, but for a
//! guard, which is sent nothing more.
//!
//! `tests/golden/messages` holds one line for each message, written by the types of commit d7787f2, the
//! last before formats had numbers: each kind of everything, and each field with something in it.

use std::time::Duration;

use failover::adapters::keys::VerifyingKey;
use failover::adapters::tls::{TlsFiles, TlsMaterial};
use failover::agent::guard_protocol::{
    FenceMarker, FromGuard, GuardCommand, GuardConfig, GuardEvent, GuardReply, PROTOCOL, Request,
};
use failover::engine::format::{Format, PROGRAM, WrittenBy};
use failover::engine::observation::{Facts, Finding};
use failover::engine::situation::LocalDatabase;
use failover::engine::topology::Role;
use failover::engine::units::{Bytes, Epoch, Lsn, Timeline};
use failover::ports::{AgentMemory, EffectError};
use failover::wire::sealed::{Sealed, SignedOrder, open_answer};
use failover::wire::written::{self, Message, Unknown, Written};
use failover::wire::{
    AdoptAsk, AdoptInstanceAsk, Came, Groups, HoldAsk, LogPart, ObserverAnswer, ObserverReport,
    Order, PeerAnswer, PeerQuestion, PromoteAnswer, PromoteAsk, Readiness, RelayAnswer, Relayed,
    ReleaseAsk, Report, ReportAnswer, Status, What,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::tls::{CONTROLLER, House};

/// The lines of a file, each as it was written.
fn lines(name: &str) -> Vec<String> {
    let text = super::text(&format!("messages/{name}.jsonl"));
    assert!(text.ends_with('\n'), "{name}");
    text.lines().map(ToOwned::to_owned).collect()
}

/// Why an earlier program would not find in `now` what it knew as `then`.
fn missing(then: &Value, now: &Value, path: &str) -> Option<String> {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => then.iter().find_map(|(name, value)| {
            let path = format!("{path}/{name}");
            match now.get(name) {
                Some(now) => missing(value, now, &path),
                // It reads nothing there as nothing.
                None => (!value.is_null()).then(|| format!("{path} is gone")),
            }
        }),
        (Value::Array(then), Value::Array(now)) if then.len() == now.len() => {
            let mut both = then.iter().zip(now).enumerate();
            both.find_map(|(index, (then, now))| missing(then, now, &format!("{path}/{index}")))
        }
        _ => (then != now).then(|| format!("{path} is {now}, and was {then}")),
    }
}

fn said_again(line: &str, now: &impl Serialize) {
    let then: Value = serde_json::from_str(line).unwrap();
    let now = serde_json::to_value(now).unwrap();
    assert_eq!(missing(&then, &now, ""), None, "{line}");
}

/// The messages of a file, read as a process reads them, and said again as it says them.
fn messages<T: Message>(name: &str) -> Vec<T> {
    let read = |line: &String| {
        let Written { by, message } = Written::<T>::read(line.as_bytes()).unwrap();
        assert_eq!(by.format, Format::UNNUMBERED, "{line}");
        let ours = Written::ours(&message);
        said_again(line, &ours);
        let written = serde_json::to_value(&ours).unwrap();
        assert_eq!(written["written_by"]["program"], PROGRAM);
        message
    };
    lines(name).iter().map(read).collect()
}

/// The same for what says nothing of who wrote it.
fn plain<T: DeserializeOwned + Serialize>(name: &str) -> Vec<T> {
    let read = |line: &String| {
        let read: T = serde_json::from_str(line).unwrap();
        said_again(line, &read);
        read
    };
    lines(name).iter().map(read).collect()
}

#[test]
fn reports_of_agents_and_observers_and_their_answers() {
    let reports = messages::<Report>("reports");
    let Finding::Good(Facts::Database(database)) = &reports[0].observations[0].finding else {
        panic!("{reports:?}");
    };
    assert_eq!(
        (database.role, database.position),
        (Role::Primary, Lsn(0x300_1A28))
    );
    let primary = &reports[0].facts;
    assert!(primary.foreign.is_some() && primary.synchrony.is_some());
    assert_eq!(reports[1].observations.len(), 11, "each way to fail");
    let states: Vec<&LocalDatabase> = reports.iter().map(|it| &it.facts.database).collect();
    assert!(
        matches!(
            states[..],
            [
                LocalDatabase::Up,
                LocalDatabase::Waiting { .. },
                LocalDatabase::Recovering { .. },
                LocalDatabase::Down { .. }
            ]
        ),
        "{states:?}"
    );
    // Of who wrote it a report says what it said then.
    let by = Written::<Report>::read(lines("reports")[0].as_bytes())
        .unwrap()
        .by;
    assert_eq!(by.program, "0.1.0");

    let answers = messages::<ReportAnswer>("report-answers");
    let granted = answers.iter().filter(|it| matches!(it.grant, Some(Ok(_))));
    let refused = answers.iter().filter(|it| matches!(it.grant, Some(Err(_))));
    assert_eq!((granted.count(), refused.count(), answers.len()), (1, 5, 8));

    let observed = messages::<ObserverReport>("observer-reports");
    assert_eq!(observed[0].name.as_str(), "paris");
    let answer = &messages::<ObserverAnswer>("observer-answers")[0];
    assert_eq!(answer.rhythm.every, Duration::from_millis(250));
}

/// What the documentation says of a message, up to the reason.
fn rule<T: Message>() -> String {
    let rule = match T::UNKNOWN {
        Unknown::Ignored => "ignored".to_owned(),
        Unknown::Refused => "refused".to_owned(),
        Unknown::RefusedIn([rest @ .., last]) => {
            let rest = rest.join("`, `");
            format!("refused in `{rest}` and `{last}`, ignored elsewhere")
        }
        Unknown::RefusedIn([]) => panic!("{} refuses in nothing", T::NAME),
    };
    format!("| {} | {} | {rule} |", T::NAME, T::READER)
}

#[test]
fn the_rules_in_the_documentation_are_those_of_the_code() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/formats.md")).unwrap();
    let begin = "| message | read by | an unknown field is | why |\n| --- | --- | --- | --- |\n";
    let (_, table) = page.split_once(begin).unwrap();
    let rows: Vec<&str> = table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .collect();
    let rules = [
        rule::<Report>(),
        rule::<ReportAnswer>(),
        rule::<ObserverReport>(),
        rule::<ObserverAnswer>(),
        rule::<Order>(),
        "| answer to the order | controller | refused |".to_owned(),
        rule::<Relayed>(),
        rule::<PeerQuestion>(),
        rule::<PeerAnswer>(),
        rule::<PromoteAsk>(),
        rule::<HoldAsk>(),
        rule::<ReleaseAsk>(),
        rule::<AdoptAsk>(),
        rule::<AdoptInstanceAsk>(),
        rule::<PromoteAnswer>(),
        rule::<Status>(),
        rule::<Readiness>(),
        rule::<Groups>(),
        rule::<LogPart>(),
        rule::<AgentMemory>(),
        rule::<GuardConfig>(),
        // These are read by other means, which have tests of their own.
        "| command to the guard | guard | refused |".to_owned(),
        "| answer or news of the guard | agent | ignored |".to_owned(),
        "| entry of the decision log | controller | refused |".to_owned(),
        "| evidence of a decision | controller | ignored |".to_owned(),
    ];
    assert_eq!(rows.len(), rules.len(), "{rows:?}");
    for (row, rule) in rows.iter().zip(&rules) {
        assert!(
            row.starts_with(rule.as_str()),
            "the code says {rule} and the page {row}"
        );
    }
    for (what, now) in [
        ("messages between processes", written::FORMAT),
        ("orders and the answers to them", written::FORMAT),
        ("the guard's socket", PROTOCOL),
        ("the decision log", failover::engine::chain::FORMAT),
        ("the agent's memory", AgentMemory::FORMAT),
    ] {
        let begin = format!("| {what}");
        let line = page.lines().find(|line| line.starts_with(&begin)).unwrap();
        assert!(line.ends_with(&format!(" {now} |")), "{line}");
    }
}

fn key() -> VerifyingKey {
    VerifyingKey::from_file(&super::golden("messages/orders.pub")).unwrap()
}

fn orders() -> Vec<SignedOrder> {
    let sealed = plain::<Sealed>("orders").into_iter();
    sealed
        .map(|it| SignedOrder::open(it, &key()).unwrap())
        .collect()
}

#[test]
fn orders_are_obeyed_as_they_were_meant_and_signed() {
    let orders = orders();
    let what: Vec<What> = orders.iter().map(|it| it.order().what).collect();
    let all = [
        What::Fence,
        What::Unfence,
        What::Sever,
        What::Reconnect,
        What::Promote,
        What::Desist,
        What::StartWorkloads,
        What::StopWorkloads,
        What::AwaitWorkloads,
    ];
    assert_eq!(what, all);
    for (signed, line) in orders.iter().zip(lines("orders")) {
        let order = signed.order();
        assert_eq!((order.plan, order.epoch), (14, Epoch(2)));
        assert_eq!(order.check_only, order.what == What::Desist);
        assert_eq!(order.instance.is_some(), order.what != What::AwaitWorkloads);
        // It is handed on as the bytes that came.
        assert_eq!(serde_json::to_string(signed.sealed()).unwrap(), line);
        // Inside the signature an order of ours has all that it had, and who wrote it beside.
        let then: Value = serde_json::from_str(&line).unwrap();
        said_again(then["body"].as_str().unwrap(), &Written::ours(order));
    }
    let relayed = &messages::<Relayed>("relayed")[0];
    assert_eq!(relayed.order, *orders[0].sealed());
    relayed.order.is_order(&key()).unwrap();
}

#[test]
fn answers_to_orders_are_believed_as_they_were_signed() {
    let house = House::new();
    let own = house.issue(CONTROLLER, crate::tls::CENTURY);
    let believed = TlsFiles {
        ca: super::golden("messages/ca.pem"),
        ..own
    };
    let believed = TlsMaterial::load(&believed).unwrap();
    let order = &orders()[0];
    let answers: Vec<_> = plain::<Sealed>("order-answers")
        .iter()
        .map(|answer| open_answer(order, answer, &believed).unwrap())
        .collect();
    let severed = Came::Severed {
        position: Lsn(0x300_1A28),
        replayed: true,
        // It did not say, so it may have let the right stand until just now.
        vouched_ago: None,
    };
    let promoted = Came::Promoted {
        timeline: Timeline(2),
        position: Lsn(0x300_1B00),
        already: false,
    };
    let fenced = Came::Fenced {
        said: "immediate in 312 ms; 127.0.0.1:5432 refuses".to_owned(),
    };
    assert_eq!(
        answers,
        [
            Ok(Came::Done),
            Ok(Came::NotDone),
            Ok(fenced),
            Ok(severed),
            Ok(promoted),
            Err(EffectError::Failed("the order is void".to_owned())),
            Err(EffectError::Refused("plan 14 was given up here".to_owned())),
            Err(EffectError::Unknown("under way".to_owned())),
            Err(EffectError::Late("no answer in time".to_owned())),
            Err(EffectError::Conflict("serial 8".to_owned())),
        ]
    );
    let relayed = plain::<RelayAnswer>("relay-answers");
    let carried = relayed[0].as_ref().unwrap();
    assert!(open_answer(order, carried, &believed).unwrap().is_ok());
    assert!(matches!(relayed[1], Err(EffectError::Late(_))));
}

#[test]
fn what_the_agents_ask_each_other() {
    let questions = messages::<PeerQuestion>("peer-questions");
    assert!(questions[0].instance.is_some() && questions[1].instance.is_none());
    let answers = messages::<PeerAnswer>("peer-answers");
    let said: Vec<_> = answers
        .iter()
        .map(|it| (it.superseded, it.vouches))
        .collect();
    assert_eq!(said, [(false, true), (false, false), (true, true)]);
    let shown = answers[2].order.clone().unwrap();
    let order = SignedOrder::open(shown, &key()).unwrap();
    assert_eq!(order.order().what, What::Sever);
}

#[test]
fn what_people_ask_and_are_answered() {
    let promote = messages::<PromoteAsk>("promote-asks");
    assert_eq!(promote[0].accept_data_loss, Some(Bytes(16 << 20)));
    assert!(promote[0].dry_run && !promote[1].dry_run);
    assert_eq!(
        messages::<HoldAsk>("hold-asks")[0].lasting,
        Duration::from_hours(1)
    );
    // A release was never about a standby that was made anew.
    assert!(!messages::<ReleaseAsk>("release-asks")[0].rebuilt);
    assert_eq!(messages::<AdoptAsk>("adopt-asks")[0].epoch, Epoch(2));
    assert_eq!(
        messages::<AdoptInstanceAsk>("adopt-instance-asks")[0]
            .site
            .as_str(),
        "aws"
    );
    plain::<()>("done");

    let answers = messages::<PromoteAnswer>("promote-answers");
    assert_eq!((answers[0].plan, answers[1].plan), (Some(14), None));
    let statuses = messages::<Status>("statuses");
    assert!(statuses[0].plan.is_none() && statuses[1].plan.is_some());
    assert_eq!(statuses[0].fleet.controller, WrittenBy::default());
    let ready: Vec<bool> = messages::<Readiness>("readiness")
        .iter()
        .map(|it| it.ready)
        .collect();
    assert_eq!(ready, [true, false]);
    let part = &messages::<LogPart>("log-parts")[0];
    for line in &part.lines {
        failover::engine::chain::read_line(line.as_bytes()).unwrap();
    }
    assert_eq!(part.lines.len() as u64, part.last);
}

#[test]
fn what_agent_and_guard_say_to_each_other() {
    // An earlier guard refuses a field that it does not know: to the byte, nothing else is sent.
    let mut commands = Vec::new();
    for line in lines("guard-commands") {
        let request: Request = serde_json::from_str(&line).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), line);
        commands.push(request.cmd);
    }
    let kind = |name: fn(&GuardCommand) -> bool| commands.iter().filter(|it| name(it)).count();
    assert_eq!(kind(|it| matches!(it, GuardCommand::Start { .. })), 2);
    assert_eq!(
        kind(|it| matches!(
            it,
            GuardCommand::Right {
                deadline_ns: u64::MAX,
                ..
            }
        )),
        1
    );
    assert_eq!(commands.len(), 9);

    let mut words = [0, 0, 0];
    for word in plain::<FromGuard>("guard-words") {
        words[match word {
            FromGuard::Reply {
                reply: GuardReply::Status(_),
                ..
            } => 0,
            FromGuard::Reply { .. } => 1,
            FromGuard::Event { event } => {
                assert!(!matches!(event, GuardEvent::Lost {}));
                2
            }
        }] += 1;
    }
    assert_eq!(words, [2, 7, 3]);
    let markers = plain::<FenceMarker>("fence-markers");
    assert!(markers[0].proof.is_none() && markers[1].proof.is_some());
}
