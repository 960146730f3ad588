use super::*;

fn admitted(connections: &Arc<Connections>, count: usize) -> Vec<Admitted> {
    (0..count).map(|_| connections.admit().unwrap()).collect()
}

fn leaving(all: &[Admitted]) -> Vec<usize> {
    (0..all.len()).filter(|at| all[*at].connection().must_leave()).collect()
}

#[test]
fn the_oldest_unfinished_connection_makes_room_before_idle_ones() {
    let connections = Arc::new(Connections::new(4));
    let mut all = admitted(&connections, 4);
    all[0].connection().serves();
    all[1].connection().rests();
    all.extend(connections.admit());
    assert_eq!(leaving(&all), [2]);
    all[3].connection().stalls();
    all[4].connection().serves();
    all.extend(connections.admit());
    assert_eq!(leaving(&all), [1, 2], "an idle one before one that does not read");
    all[5].connection().serves();
    all.extend(connections.admit());
    assert_eq!(leaving(&all), [1, 2, 3]);
}

#[test]
fn response_for_no_free_place_has_its_stated_length() {
    let (head, body) = std::str::from_utf8(NO_PLACE).unwrap().split_once("\r\n\r\n").unwrap();
    assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
}

#[test]
fn a_connection_that_came_just_now_has_time_for_its_head() {
    let connections = Arc::new(Connections::new(8));
    let mut all = admitted(&connections, 8);
    all[..7].iter().for_each(|one| one.connection().rests());
    all.extend(connections.admit());
    assert_eq!(leaving(&all), [0]);
}

#[test]
fn connections_that_read_their_heads_longest_give_their_room() {
    let connections = Arc::new(Connections::new(8));
    let all = admitted(&connections, 6);
    all.iter().for_each(|one| one.connection().holds(10));
    all[0].connection().serves();
    all[1].connection().holds(0);
    let asking = all[2].connection();
    assert!(connections.dismiss_readers(15, asking));
    assert_eq!(leaving(&all), [3, 4]);
    assert!(!connections.dismiss_readers(15, asking), "who was told to leave gives nothing again");
    assert_eq!(leaving(&all), [3, 4]);
}

#[test]
fn connection_in_use_retains_its_place() {
    let connections = Arc::new(Connections::new(2));
    let all = admitted(&connections, 2);
    all.iter().for_each(|one| one.connection().serves());
    assert!(connections.admit().is_none());
    assert_eq!((leaving(&all), connections.refused()), (vec![], 1));
    drop(all);
    assert!(connections.admit().is_some());
}

#[test]
fn a_connection_that_is_used_between_two_looks_does_not_end() {
    let connections = Arc::new(Connections::new(8));
    let all = admitted(&connections, 3);
    let other = connections.admit_to(Some(1)).unwrap();
    let ends = || [&all[0], &all[1], &all[2], &other].map(|one| one.connection().ends_when_idle());
    all[..2].iter().chain([&other]).for_each(|one| one.connection().rests());
    connections.look_at_idle(None, true);
    connections.look_at_idle(None, false);
    assert_eq!(ends(), [false; 4]);
    all[1].connection().serves();
    all[1].connection().rests();
    connections.look_at_idle(None, true);
    assert_eq!(ends(), [true, false, false, false]);
}

#[test]
fn connection_in_use_outlives_stalled_ones() {
    let connections = Arc::new(Connections::new(3));
    let mut all = admitted(&connections, 3);
    all[0].connection().rests();
    all[1..].iter().for_each(|one| one.connection().stalls());
    all.extend(connections.admit());
    assert_eq!(leaving(&all), [0], "they may just be slow");
    all[3].connection().rests();
    let long_ago = monotonic_ms().saturating_sub(STALLED_MS);
    all[2].connection().since.store(long_ago, Ordering::Relaxed);
    all.extend(connections.admit());
    assert_eq!(leaving(&all), [0, 2]);
}

#[test]
fn an_idle_connection_that_is_used_outlives_an_older_look() {
    let connections = Arc::new(Connections::new(3));
    let mut all = admitted(&connections, 3);
    all.iter().for_each(|one| one.connection().rests());
    all.extend(connections.admit());
    assert_eq!(leaving(&all), [0]);
    // Two others were seen idle. This one has been used since.
    all[1].connection().rests();
    all[3].connection().serves();
    all.extend(connections.admit());
    assert_eq!(leaving(&all), [0, 2]);
}
