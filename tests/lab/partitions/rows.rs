//! The rows, in sections that have a policy of their own.

use failover::engine::reason::Code;
use failover::lab::network::Place::{self, Aws, Client, Gcp, Neutral};
use failover::lab::standing::Fault;

/// What is expected of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// No promotion, and this reason in the decision log.
    Hold(Code),
    /// The other site takes over.
    FailOver,
    /// Commits wait for as long as something is cut, and go on when it is mended. Times count from
    /// there.
    GoOn,
    /// Users are served again, by whichever site: the old one starts again, or is fenced by its
    /// agent's word.
    Serve,
}

/// What happens later on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    /// The controller is killed while it waits for the fence, and started again.
    ControllerKilled,
    /// The controller is frozen while it waits for the fence, for longer than any lease, and
    /// thawed.
    ControllerFrozen,
    /// All is mended, and the service comes back by itself, at whichever site.
    Returns,
    /// The fault comes again and again.
    OverAndOver,
    /// The fault comes again as soon as there is something that it can hit.
    KeptDown,
    /// What was frozen is thawed when the new site takes writes.
    Thawed,
    /// What was killed is started again, as the units have it.
    Supervised,
}

/// How full a disk becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// No table grows any more; the WAL has room to the end of its segment.
    Data,
    /// The WAL's segment is at its end too.
    Wal,
}

/// One row of the table.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) cuts: Vec<(Place, Place)>,
    /// What goes wrong, and where.
    pub(super) fault: Option<(Fault, Place)>,
    pub(super) then: Then,
    /// Commits wait for a standby that stalls, until the log permits them to go on without it.
    pub(super) released: bool,
    /// The database of A lies on a small file system, which becomes full.
    pub(super) full: Option<Full>,
    pub(super) expect: Expect,
}

/// Rows that are walked under one policy.
#[derive(Debug, Clone)]
pub(super) struct Section {
    pub(super) heading: &'static str,
    /// What the page says of it.
    pub(super) about: &'static str,
    /// The file in `policies` that it is walked under.
    pub(super) base: &'static str,
    /// What of that is replaced, and by what.
    pub(super) changes: &'static [(&'static str, &'static str)],
    pub(super) rows: Vec<Row>,
}

impl Section {
    /// The text of its policy.
    pub(super) fn policy(&self) -> String {
        let path = format!("{}/policies/{}", env!("CARGO_MANIFEST_DIR"), self.base);
        let mut text = std::fs::read_to_string(path).unwrap();
        for (was, is) in self.changes {
            assert_eq!(text.matches(was).count(), 1, "`{was}` is not in the policy");
            text = text.replace(was, is);
        }
        text
    }

    /// The whole name of one of its rows.
    pub(super) fn called(&self, row: &Row) -> String {
        format!("{}: {}", self.heading, row.name)
    }
}

/// All of them.
pub(super) fn sections() -> Vec<Section> {
    vec![
        Section {
            heading: "Asynchronous",
            about: "The policy as shipped: no commit waits for the standby. A full disk is a file \
                    system of 192 MiB that holds only A's database.",
            base: "fast.toml",
            changes: &[],
            rows: [held(), held_one_way(), failed_over(), failed_over_one_way()].concat(),
        },
        Section {
            heading: "Zero-loss",
            about: "Every commit waits for the standby, and the RPO window is closed when the row \
                    begins. If the standby stalls and the controller is reachable, commits wait \
                    until the log permits them to go on without it. That wait shows as a write gap \
                    in the rows that cut A and P off from each other: held, it ends with the \
                    permission; failed over, it begins with the cut, also for users who still \
                    reach A. Such a failover loses nothing, and the old primary acknowledges \
                    nothing, not even one that was frozen and resumes.",
            base: "fast.toml",
            changes: &[
                ("durability = \"async\"", "durability = \"sync\""),
                (
                    "on_stall = \"release-after 5s\"",
                    "on_stall = \"release-after 1s\"",
                ),
            ],
            rows: zero_loss(),
        },
        Section {
            heading: "Services that move",
            about: "A service that fails while its database is healthy is moved, with the \
                database.",
            base: "fast.toml",
            changes: &[("api_failure = \"hold\"", "api_failure = \"failover\"")],
            rows: vec![row(
                "the service of A is killed, its database is well",
                &[],
                Some((Fault::KillApi, Aws)),
                Expect::FailOver,
            )],
        },
        Section {
            heading: "Zero-loss that blocks",
            about: "Commits wait for the standby for as long as it takes. The two sites are cut \
                    off from each other for 45 s; times count from when the link is restored until \
                    a commit is acknowledged.",
            base: "fast.toml",
            changes: &[
                ("durability = \"async\"", "durability = \"sync\""),
                ("on_stall = \"release-after 5s\"", "on_stall = \"block\""),
            ],
            rows: vec![row(
                "A–P down, and mended",
                &both(Aws, Gcp),
                None,
                Expect::GoOn,
            )],
        },
        Section {
            heading: "Leases that outlast the detection",
            about: "The controller fails while it waits for a lease to expire.",
            base: "fast.toml",
            changes: &[("lease_ttl = \"1s 500ms\"", "lease_ttl = \"6s\"")],
            rows: waited_for(),
        },
        Section {
            heading: "As it ships",
            about: "The policy for production, which waits longer before it considers a site lost.",
            base: "standard.toml",
            changes: &[("startup_grace = \"1m\"", "startup_grace = \"2s\"")],
            rows: vec![row(
                "the whole of A is killed",
                &[],
                Some((Fault::KillSite, Aws)),
                Expect::FailOver,
            )],
        },
    ]
}

fn both(a: Place, b: Place) -> [(Place, Place); 2] {
    [(a, b), (b, a)]
}

fn row(
    name: &'static str,
    cuts: &[(Place, Place)],
    fault: Option<(Fault, Place)>,
    expect: Expect,
) -> Row {
    Row {
        name,
        cuts: cuts.to_vec(),
        fault,
        then: Then::Nothing,
        released: false,
        full: None,
        expect,
    }
}

/// The rows after which the lab is as it was before, when all is mended.
fn held() -> Vec<Row> {
    let hold = |name, cuts: &[_], code| row(name, cuts, None, Expect::Hold(code));
    let fault = |name, fault, code| row(name, &[], Some((fault, Aws)), Expect::Hold(code));
    let two = |links: [[(Place, Place); 2]; 2]| links.concat();
    let three = |links: [[(Place, Place); 2]; 3]| links.concat();
    vec![
        hold("N–A down", &both(Neutral, Aws), Code::ObserverSideFault),
        hold("N→A down", &[(Neutral, Aws)], Code::ObserverSideFault),
        hold("A→N down", &[(Aws, Neutral)], Code::ObserverSideFault),
        hold("A–P down", &both(Aws, Gcp), Code::ReplicationBroken),
        hold("A→P down", &[(Aws, Gcp)], Code::ReplicationBroken),
        hold("P→A down", &[(Gcp, Aws)], Code::ReplicationBroken),
        hold("N–P down", &both(Neutral, Gcp), Code::StandbyUnreachable),
        hold("N→P down", &[(Neutral, Gcp)], Code::StandbyUnreachable),
        hold("P→N down", &[(Gcp, Neutral)], Code::StandbyUnreachable),
        hold(
            "N–P and A–P down: the passive site is alone",
            &two([both(Neutral, Gcp), both(Aws, Gcp)]),
            Code::StandbyUnreachable,
        ),
        hold(
            "N–A and N–P down: the controller is alone",
            &two([both(Neutral, Aws), both(Neutral, Gcp)]),
            Code::OwnIsolation,
        ),
        hold(
            "N→A and N→P down",
            &[(Neutral, Aws), (Neutral, Gcp)],
            Code::OwnIsolation,
        ),
        hold(
            "users do not reach A, all else is up",
            &both(Client, Aws),
            Code::Healthy,
        ),
        fault(
            "the service of A is killed",
            Fault::KillApi,
            Code::ActiveApiFailed,
        ),
        fault(
            "the postmaster of A hangs, its sessions go on",
            Fault::HangDatabase,
            Code::ReplicationAdvancing,
        ),
        row(
            "the whole of P is frozen",
            &[],
            Some((Fault::FreezeSite, Gcp)),
            Expect::Hold(Code::StandbyUnreachable),
        ),
        row(
            "the postmaster of P hangs, its WAL receiver goes on",
            &[],
            Some((Fault::HangDatabase, Gcp)),
            Expect::Hold(Code::StandbyUnreachable),
        ),
        Row {
            then: Then::KeptDown,
            ..row(
                "the database of P is killed whenever it starts",
                &[],
                Some((Fault::KillDatabase, Gcp)),
                Expect::Hold(Code::StandbyUnreachable),
            )
        },
        Row {
            then: Then::Supervised,
            ..row(
                "the agent of A is killed, and started again",
                &[],
                Some((Fault::KillAgent, Aws)),
                Expect::Hold(Code::Healthy),
            )
        },
        Row {
            then: Then::OverAndOver,
            ..row(
                "the WAL receiver of P is killed over and over",
                &[],
                Some((Fault::KillReceiver, Gcp)),
                Expect::Hold(Code::Healthy),
            )
        },
        Row {
            then: Then::Returns,
            ..hold(
                "N–A, N–P and A–P down: everybody is alone, A fences itself",
                &three([both(Neutral, Aws), both(Neutral, Gcp), both(Aws, Gcp)]),
                Code::OwnIsolation,
            )
        },
    ]
}

/// Cuts of single directions that go together: what needs an answer is cut by either of them.
fn held_one_way() -> Vec<Row> {
    let hold = |name, cuts: &[_], code| row(name, cuts, None, Expect::Hold(code));
    vec![
        hold(
            "A→N and P→N down: the controller hears nobody",
            &[(Aws, Neutral), (Gcp, Neutral)],
            Code::OwnIsolation,
        ),
        hold(
            "N→A and P→N down",
            &[(Neutral, Aws), (Gcp, Neutral)],
            Code::OwnIsolation,
        ),
        hold(
            "N→P and A→P down: the passive site hears nobody",
            &[(Neutral, Gcp), (Aws, Gcp)],
            Code::StandbyUnreachable,
        ),
        hold(
            "P→N and P→A down: nobody hears the passive site",
            &[(Gcp, Neutral), (Gcp, Aws)],
            Code::StandbyUnreachable,
        ),
        hold(
            "N→A and users→A down",
            &[(Neutral, Aws), (Client, Aws)],
            Code::ObserverSideFault,
        ),
        hold(
            "users→A down, all else is up",
            &[(Client, Aws)],
            Code::Healthy,
        ),
    ]
}

/// As [`held_one_way`], with the loss of A.
fn failed_over_one_way() -> Vec<Row> {
    let cut = |name, cuts: &[_]| row(name, cuts, None, Expect::FailOver);
    vec![
        cut(
            "N→A and A→P down, users reach A",
            &[(Neutral, Aws), (Aws, Gcp)],
        ),
        cut(
            "A→N and P→A down, users reach A",
            &[(Aws, Neutral), (Gcp, Aws)],
        ),
        cut(
            "N→A, P→A and users→A down: A hears nobody",
            &[(Neutral, Aws), (Gcp, Aws), (Client, Aws)],
        ),
        cut(
            "A→N, A→P and A→users down: nobody hears A",
            &[(Aws, Neutral), (Aws, Gcp), (Aws, Client)],
        ),
    ]
}

/// The rows that end with the other site active.
fn failed_over() -> Vec<Row> {
    let cut = |name, cuts: &[_]| row(name, cuts, None, Expect::FailOver);
    let fault = |name, fault| row(name, &[], Some((fault, Aws)), Expect::FailOver);
    let then = |row: Row, then| Row { then, ..row };
    let isolated = [both(Neutral, Aws), both(Gcp, Aws)].concat();
    vec![
        fault("the whole of A is killed", Fault::KillSite),
        cut("N–A and A–P down, users reach A", &isolated),
        cut(
            "A→N and A→P down, users reach A",
            &[(Aws, Neutral), (Aws, Gcp)],
        ),
        cut(
            "N→A and P→A down, users reach A",
            &[(Neutral, Aws), (Gcp, Aws)],
        ),
        cut(
            "N–A, A–P and users–A down",
            &[isolated.clone(), both(Client, Aws).to_vec()].concat(),
        ),
        fault("the database of A is killed", Fault::KillDatabase),
        row(
            "N–A down, and the database of A is killed",
            &both(Neutral, Aws),
            Some((Fault::KillDatabase, Aws)),
            Expect::FailOver,
        ),
        Row {
            full: Some(Full::Data),
            ..cut("the disk of A is full", &[])
        },
        Row {
            full: Some(Full::Wal),
            ..cut("the disk of A is full, and no WAL can be written", &[])
        },
        fault("the agent of A is killed", Fault::KillAgent),
        then(
            row(
                "agent, guard and database of A are killed, and the agent is started again",
                &[],
                Some((Fault::KillAgentAndDatabase, Aws)),
                Expect::Serve,
            ),
            Then::Supervised,
        ),
        fault("the agent of A is frozen", Fault::FreezeAgent),
        then(
            fault("the whole of A is frozen, and thaws", Fault::FreezeSite),
            Then::Thawed,
        ),
    ]
}

/// The rows in which the controller has to wait, and something happens to it meanwhile.
fn waited_for() -> Vec<Row> {
    let isolated = [both(Neutral, Aws), both(Gcp, Aws)].concat();
    let cut = |name, then| Row {
        then,
        ..row(name, &isolated, None, Expect::FailOver)
    };
    vec![
        cut(
            "N–A and A–P down, and the controller is killed in the plan",
            Then::ControllerKilled,
        ),
        cut(
            "N–A and A–P down, and the controller is frozen in the plan",
            Then::ControllerFrozen,
        ),
    ]
}

/// The rows under a policy that lets every commit wait for the standby.
fn zero_loss() -> Vec<Row> {
    let hold = |name, cuts: &[_], code| row(name, cuts, None, Expect::Hold(code));
    let released = |row| Row {
        released: true,
        ..row
    };
    let cut = |name, cuts: &[_]| row(name, cuts, None, Expect::FailOver);
    let fault = |name, fault| row(name, &[], Some((fault, Aws)), Expect::FailOver);
    let isolated = [both(Neutral, Aws), both(Gcp, Aws)].concat();
    let alone = [both(Neutral, Gcp), both(Aws, Gcp)].concat();
    vec![
        hold("N–A down", &both(Neutral, Aws), Code::ObserverSideFault),
        released(hold("A–P down", &both(Aws, Gcp), Code::ReplicationBroken)),
        released(hold(
            "N–P and A–P down: the passive site is alone",
            &alone,
            Code::StandbyUnreachable,
        )),
        fault("the whole of A is killed", Fault::KillSite),
        cut("N–A and A–P down, users reach A", &isolated),
        cut(
            "A→N and A→P down, users reach A",
            &[(Aws, Neutral), (Aws, Gcp)],
        ),
        cut(
            "N→A and P→A down, users reach A",
            &[(Neutral, Aws), (Gcp, Aws)],
        ),
        fault("the database of A is killed", Fault::KillDatabase),
        fault("the agent of A is killed", Fault::KillAgent),
        fault("the agent of A is frozen", Fault::FreezeAgent),
        Row {
            then: Then::Thawed,
            ..fault("the whole of A is frozen, and thaws", Fault::FreezeSite)
        },
        Row {
            then: Then::ControllerKilled,
            ..cut(
                "N–A and A–P down, and the controller is killed in the plan",
                &isolated,
            )
        },
    ]
}
