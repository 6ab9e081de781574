//! What was measured in a row, and the page that shows it.

use std::fmt;

use failover::engine::units::WallTime;

use super::{Expect, Row};

/// The page.
pub(super) const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/partitions.md");

/// What was measured in one walk over one row.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    /// When the fault happened.
    pub(super) at: WallTime,
    /// From the fault until the reason stood in the log, or until the new site took a write.
    pub(super) after_ms: Option<u64>,
    /// From the fault to a user's first write at the new site.
    pub(super) user_ms: Option<u64>,
    /// How the old primary was proven fenced.
    pub(super) proof: Option<String>,
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

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after {:?} ms, user {:?} ms, gap {} ms, {} acknowledged, {} lost, {} outside, {} by old after new, {}",
            self.after_ms,
            self.user_ms,
            self.gap_ms,
            self.acknowledged,
            self.lost,
            self.lost_outside,
            self.by_old_after_new,
            self.proof.as_deref().unwrap_or("no fence"),
        )?;
        for problem in &self.problems {
            write!(f, "\n  PROBLEM {problem}")?;
        }
        Ok(())
    }
}

/// The largest of several, in seconds.
fn seconds(values: impl Iterator<Item = u64>) -> String {
    values.max().map_or("–".to_owned(), |ms| {
        format!("{}.{}", ms / 1000, ms % 1000 / 100)
    })
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

/// The whole page.
pub(super) fn text(rows: &[Row], all: &[Vec<Measured>]) -> String {
    let walks = all.iter().map(Vec::len).max().unwrap_or_default();
    let mut text = format!(
        "# What happens in each partition\n\n\
         Written by the test that walks these rows ({walks} times, the worst of them shown): \
         `UPDATE_DOCS=1 PARTITION_REPEAT=3 cargo test --test lab partitions`. Two sites, a neutral \
         place and the users, each in a network namespace of its own, with real PostgreSQL, under \
         `policies/fast.toml`. One client follows the service's name, another keeps its sessions \
         with the old primary for as long as they last; both write 50 rows a second.\n\n\
         A is the active site, P the passive one, N the neutral place of the controller. `A→P` is \
         one direction: packets from A to P vanish, those from P to A arrive. `A–P` is both.\n\n\
         ## Held\n\n\
         No promotion within five times `fail_after`, and no acknowledged write lost. When all is \
         mended, each returns to what it was without anybody's help.\n\n\
         | what is wrong | reason in the decision log | after s | longest write gap s | acknowledged | lost |\n\
         | --- | --- | ---: | ---: | ---: | ---: |\n"
    );
    for (row, all) in rows.iter().zip(all) {
        let Expect::Hold(code) = row.expect else {
            continue;
        };
        text += &format!(
            "| {} | [`{code}`](../runbooks/{code}.md) | {} | {} | {} | {} |\n",
            row.name,
            seconds(all.iter().filter_map(|one| one.after_ms)),
            seconds(all.iter().map(|one| one.gap_ms)),
            span(all.iter().map(|one| one.acknowledged)),
            span(all.iter().map(|one| one.lost)),
        );
    }
    text += "\n## Failed over\n\n\
         *Lost* are writes that were acknowledged and are not in the new primary; all of them must \
         lie in the window that was declared before the promotion. *Old after new* are writes that \
         the old primary acknowledged although they were sent after the new one's first \
         acknowledgement. A host that was frozen as a whole and thaws is the one exception: until \
         its guard looks at the clock, what was on its way is still acknowledged. A walk that \
         meets no such moment shows 0.\n\n\
         | what is wrong | writable s | user writes again s | proof of the fence | acknowledged | lost | outside the window | old after new |\n\
         | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |\n";
    for (row, all) in rows.iter().zip(all) {
        if row.expect != Expect::FailOver {
            continue;
        }
        let mut proofs: Vec<_> = all.iter().filter_map(|one| one.proof.clone()).collect();
        proofs.sort();
        proofs.dedup();
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |\n",
            row.name,
            seconds(all.iter().filter_map(|one| one.after_ms)),
            seconds(all.iter().filter_map(|one| one.user_ms)),
            proofs.join(", "),
            span(all.iter().map(|one| one.acknowledged)),
            span(all.iter().map(|one| one.lost)),
            span(all.iter().map(|one| one.lost_outside)),
            old_after_new(all),
        );
    }
    text
}
