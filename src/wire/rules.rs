//! What each message is called, who reads it, and what becomes of a field that its reader does not know:
//! ignored where it is one more fact, refused where it belongs to a word that moves a right or orders
//! something. The same table, with the reasons, is in docs/formats.md.

use super::written::{Message, Unknown};
use super::{
    AdoptAsk, AdoptInstanceAsk, Groups, HoldAsk, LogPart, ObserverAnswer, ObserverReport, Order,
    PeerAnswer, PeerQuestion, PromoteAnswer, PromoteAsk, Readiness, Relayed, ReleaseAsk, Report,
    ReportAnswer, Status,
};

macro_rules! rules {
    ($($message:ty: $name:literal, $reader:literal, $unknown:expr;)*) => {$(
        impl Message for $message {
            const NAME: &'static str = $name;
            const READER: &'static str = $reader;
            const UNKNOWN: Unknown = $unknown;
        }
    )*};
}

rules! {
    Report: "report", "controller", Unknown::Ignored;
    ReportAnswer: "answer to the report", "agent", Unknown::RefusedIn(&["grant", "window", "timers"]);
    ObserverReport: "report of the observer", "controller", Unknown::Ignored;
    ObserverAnswer: "answer to the report", "observer", Unknown::Ignored;
    Order: "order", "agent", Unknown::Refused;
    Relayed: "order for the other agent", "agent", Unknown::Refused;
    PeerQuestion: "question of the other agent", "agent", Unknown::Ignored;
    PeerAnswer: "answer of the other agent", "agent", Unknown::Refused;
    PromoteAsk: "command to promote", "controller", Unknown::Refused;
    HoldAsk: "command to hold", "controller", Unknown::Refused;
    ReleaseAsk: "command to release", "controller", Unknown::Refused;
    AdoptAsk: "command to adopt", "controller", Unknown::Refused;
    AdoptInstanceAsk: "command to adopt an instance", "controller", Unknown::Refused;
    PromoteAnswer: "answer to the command", "command line", Unknown::Ignored;
    Status: "status", "command line", Unknown::Ignored;
    Readiness: "list of checks", "command line", Unknown::Ignored;
    Groups: "list of groups", "command line", Unknown::Ignored;
    LogPart: "part of the log", "command line", Unknown::Ignored;
}
