//! The two tables `[sites.NAME]`, as controller and observers have them.

use std::collections::BTreeMap;

use crate::engine::document::Section;
use crate::engine::topology::SiteName;

/// The sites, and the names that tables about them must use. `places` are the keys of a site whose
/// values no two sites may share: one thing taken for two would make one failure look like two, or
/// one health like two.
pub(crate) fn two_sites<T>(
    root: &Section<'_>,
    build: impl Fn(&Section<'_>) -> Option<T>,
    places: impl Fn(&T) -> Vec<(&'static str, String)>,
) -> (Vec<String>, Option<BTreeMap<SiteName, T>>) {
    let tables = root.named("sites");
    let names: Vec<String> = tables.iter().map(|(name, _)| name.clone()).collect();
    if root.has("sites") && tables.len() != 2 {
        root.problem("sites", format!(
            "`[sites]` has {}: a group has exactly two, such as `[sites.aws]` and `[sites.gcp]`; put further sites into another group",
            tables.len()
        ));
    }
    let built: Vec<_> = tables
        .iter()
        .map(|(name, at)| site_name(name, at).zip(build(at)))
        .collect();
    // All are built before the first missing one ends this, so that all mistakes are found.
    let sites: Option<BTreeMap<_, _>> = built.into_iter().collect();
    if let Some(sites) = &sites {
        let places = sites.iter().map(|(name, site)| (name, places(site)));
        let places: BTreeMap<&SiteName, _> = places.collect();
        for (name, at) in &tables {
            check_is_apart(name, at, &places);
        }
    }
    (names, sites)
}

fn site_name(name: &str, at: &Section<'_>) -> Option<SiteName> {
    let parsed = name.parse::<SiteName>();
    parsed.map_err(|why| at.mistake(why.to_string())).ok()
}

fn check_is_apart(
    name: &str,
    at: &Section<'_>,
    sites: &BTreeMap<&SiteName, Vec<(&'static str, String)>>,
) {
    let Some((own, places)) = sites.iter().find(|(site, _)| site.as_str() == name) else {
        return;
    };
    for (other, theirs) in sites.iter().filter(|(site, _)| *site > own) {
        for (key, _) in places.iter().filter(|place| theirs.contains(place)) {
            at.problem(
                key,
                format!(
                    "`{}` is the same as that of `{other}`: each site has its own",
                    at.path_of(key)
                ),
            );
        }
    }
}
