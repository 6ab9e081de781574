//! What was measured in a row, and the page that shows it.

use std::fmt;

use std::io::Write;
use std::path::Path;

use failover::engine::loss::DeclaredLoss;
use failover::engine::text::counted;
use failover::engine::units::WallTime;
use serde::{Deserialize, Serialize};

use super::rows::{Expect, Row, Section};

/// The page.
pub(super) const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/partitions.md");

/// What was measured in one walk over one row.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Measured {
    /// When the fault happened.
    pub(super) at: WallTime,
    /// From the fault until the reason stood in the log, or until the new site took a write.
    pub(super) after_ms: Option<u64>,
    /// From the fault to a user's first write at the new site.
    pub(super) user_ms: Option<u64>,
    /// From the fault until commits were permitted to go on without the standby.
    pub(super) opened_ms: Option<u64>,
    /// How the old primary was proven fenced.
    pub(super) proof: Option<String>,
    /// What was declared before the promotion.
    pub(super) declared: Option<DeclaredLoss>,
    /// The longest time without any acknowledgement.
    pub(super) gap_ms: u64,
    pub(super) acknowledged: usize,
    pub(super) lost: usize,
    pub(super) lost_outside: usize,
    pub(super) by_old_after_new: usize,
    /// How long a thawed site acknowledged writes; `None` where it acknowledged none.
    pub(super) thawed_ms: Option<u64>,
    pub(super) problems: Vec<String>,
}

/// Adds what was measured in a row to a file that several walks may write at once.
pub(super) fn keep(file: &Path, row: &str, measured: &Measured) {
    let mut line = serde_json::to_vec(&(row, measured)).unwrap();
    line.push(b'\n');
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(file);
    file.unwrap().write_all(&line).unwrap();
}

/// All that such a file holds about a row.
pub(super) fn kept(file: &Path, row: &str) -> Vec<Measured> {
    let text = std::fs::read_to_string(file).unwrap();
    let all = text.lines().map(|line| serde_json::from_str(line).unwrap());
    all.filter_map(|(name, measured): (String, Measured)| (name == row).then_some(measured))
        .collect()
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after {:?} ms, user {:?} ms, opened {:?} ms, gap {} ms, {} acknowledged, {} lost, {} outside, {} by old after new, {}, declared {}",
            self.after_ms,
            self.user_ms,
            self.opened_ms,
            self.gap_ms,
            self.acknowledged,
            self.lost,
            self.lost_outside,
            self.by_old_after_new,
            self.proof.as_deref().unwrap_or("no fence"),
            declared(std::slice::from_ref(self)),
        )?;
        for problem in &self.problems {
            write!(f, "\n  PROBLEM {problem}")?;
        }
        Ok(())
    }
}

fn in_seconds(ms: u64) -> String {
    format!("{}.{}", ms / 1000, ms % 1000 / 100)
}

/// The largest of several, in seconds.
fn seconds(values: impl Iterator<Item = u64>) -> String {
    values.max().map_or("–".to_owned(), in_seconds)
}

/// The median of several and the largest, in seconds.
fn median_and_worst(values: impl Iterator<Item = u64>) -> String {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    let median = values.get(values.len() / 2).copied().map(in_seconds);
    let median = median.unwrap_or_else(|| "–".to_owned());
    format!("{median} | {}", seconds(values.into_iter()))
}

/// The medians of a row, and what its writes came to.
pub(super) fn summary(all: &[Measured]) -> String {
    format!(
        "of {}: writable {} s (median | worst), user {} s, gap {} s, lost {}, by old after new {}",
        all.len(),
        median_and_worst(all.iter().filter_map(|one| one.after_ms)),
        median_and_worst(all.iter().filter_map(|one| one.user_ms)),
        median_and_worst(all.iter().map(|one| one.gap_ms)),
        span(all.iter().map(|one| one.lost)),
        old_after_new(all),
    )
}

fn span(values: impl Iterator<Item = usize> + Clone) -> String {
    let (least, most) = (values.clone().min(), values.max());
    match (least, most) {
        (Some(least), Some(most)) if least < most => format!("{least}–{most}"),
        (_, most) => most.unwrap_or_default().to_string(),
    }
}

fn old_after_new(all: &[Measured]) -> String {
    let count = span(all.iter().map(|one| one.by_old_after_new));
    match all.iter().filter_map(|one| one.thawed_ms).max() {
        Some(late) => format!("{count}, within {late} ms of the thaw"),
        None => count,
    }
}

/// The longest window that was declared, in seconds.
fn declared(all: &[Measured]) -> String {
    let losses = || all.iter().filter_map(|one| one.declared.as_ref());
    if losses().count() > 0 && losses().all(|loss| loss.nothing) {
        return "nothing".to_owned();
    }
    let open = losses().filter(|loss| !loss.nothing);
    let windows = open.filter_map(|loss| loss.window);
    seconds(windows.filter_map(|window| u64::try_from(window.as_millis()).ok()))
}

/// The whole page.
pub(super) fn text(sections: &[Section], all: &[Vec<Vec<Measured>>]) -> String {
    let walks = all.iter().flatten().map(Vec::len).max().unwrap_or_default();
    let newest = all.iter().flatten().flatten().map(|one| one.at).max();
    let day = newest.unwrap_or_default().to_string();
    let day = day.get(..10).unwrap_or_default();
    let walks = counted(u64::try_from(walks).unwrap(), "time", "times");
    let mut text = format!(
        "# What happens in each partition\n\n\
         Written by the test that runs these rows, each {walks}, the last on {day}: `make \
         partitions`. Two sites, a neutral place and the users, each in its own network namespace, \
         with real PostgreSQL, under the policy named in each section. One client follows the \
         service's name, another keeps its sessions with the old primary as long as they last; \
         both write 50 rows a second.\n\n\
         A is the active site, P the passive one, N the neutral place of the controller. `A→P` is \
         one direction: packets from A to P vanish, those from P to A arrive. `A–P` is both.\n\n\
         **Held**: no promotion within five times `fail_after`, and no acknowledged write lost. \
         When the fault is healed, each returns to its previous state by itself.\n\n\
         **Failed over**: *declared* is the longest window that was declared before the promotion, \
         in seconds. *Lost* are acknowledged writes that the new primary lacks; all of them must \
         be within that window. *Old after new* are writes that the old primary acknowledged \
         although they were sent after the new one's first acknowledgement. A host that was frozen \
         as a whole and resumes is the one exception, and only if commits do not wait for the \
         standby: until its guard checks the clock, writes in flight are still acknowledged. A run \
         without such a moment shows 0.\n\n\
         The *write gap* is the longest time in which the client that follows the name got no \
         acknowledgement. A time without \"median\" is the worst one.\n"
    );
    for (section, all) in sections.iter().zip(all) {
        text += &format!("\n## {}\n\n{}\n", section.heading, section.about);
        text += &format!("\nUnder `policies/{}`", section.base);
        text += if section.changes.is_empty() {
            ".\n"
        } else {
            ", with:\n"
        };
        for (was, is) in section.changes {
            text += &format!("\n- `{is}` instead of `{was}`");
        }
        if !section.changes.is_empty() {
            text += "\n";
        }
        let waits = section.rows.iter().any(|row| row.released);
        let of = |wanted: fn(&Expect) -> bool| {
            let rows = section.rows.iter().zip(all);
            rows.filter(move |(row, _)| wanted(&row.expect))
        };
        text += &held(of(|expect| matches!(expect, Expect::Hold(_))), waits);
        text += &failed_over(of(|expect| !matches!(expect, Expect::Hold(_))));
    }
    text
}

fn held<'r>(rows: impl Iterator<Item = (&'r Row, &'r Vec<Measured>)>, waits: bool) -> String {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return String::new();
    }
    let (column, rule) = if waits {
        (" commits go on without the standby after s |", " ---: |")
    } else {
        ("", "")
    };
    let mut text = format!(
        "\n### Held\n\n\
         | what is wrong | reason in the decision log | after s | longest write gap s |{column} acknowledged | lost |\n\
         | --- | --- | ---: | ---: |{rule} ---: | ---: |\n"
    );
    for (row, all) in rows {
        let Expect::Hold(code) = row.expect else {
            continue;
        };
        let opened = seconds(all.iter().filter_map(|one| one.opened_ms));
        let opened = if waits {
            format!(" {opened} |")
        } else {
            String::new()
        };
        text += &format!(
            "| {} | [`{code}`](../runbooks/{code}.md) | {} | {} |{opened} {} | {} |\n",
            row.name,
            seconds(all.iter().filter_map(|one| one.after_ms)),
            seconds(all.iter().map(|one| one.gap_ms)),
            span(all.iter().map(|one| one.acknowledged)),
            span(all.iter().map(|one| one.lost)),
        );
    }
    text
}

fn failed_over<'r>(rows: impl Iterator<Item = (&'r Row, &'r Vec<Measured>)>) -> String {
    let mut text = "\n### Failed over\n\n\
         | what is wrong | writable s, median | worst | user writes again s, median | worst | write gap s | proof of the fence | declared s | acknowledged | lost | outside the window | old after new |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for (row, all) in rows {
        let mut proofs: Vec<_> = all.iter().filter_map(|one| one.proof.clone()).collect();
        proofs.sort();
        proofs.dedup();
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            row.name,
            median_and_worst(all.iter().filter_map(|one| one.after_ms)),
            median_and_worst(all.iter().filter_map(|one| one.user_ms)),
            seconds(all.iter().map(|one| one.gap_ms)),
            proofs.join(", "),
            declared(all),
            span(all.iter().map(|one| one.acknowledged)),
            span(all.iter().map(|one| one.lost)),
            span(all.iter().map(|one| one.lost_outside)),
            old_after_new(all),
        );
    }
    text
}
