"""The contract of the two projects that this one is for, row by row, and the tests that hold us to each row.

Conjure.Storage and Sagents.FileSystemCallbacks say what rows 1 to 64 promise; 65 to 69 are beyond both.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

ROWS: dict[int, tuple[str, str]] = {
    1: (
        "generate and validate a session's id; accept an existing one",
        """test_fileref.py::test_generated_ids_are_16_urlsafe_characters_and_valid
        test_fileref.py::test_an_id_that_could_leave_its_place_is_refused
        test_fileref.py::test_ids_of_others_are_welcome
        daemon/test_serve.py::test_generated_ids_and_ids_that_begin_with_a_dash
        mount/test_up.py::test_everything_is_there_again_at_the_next_up""",
    ),
    2: (
        "init of a backend",
        """storage/test_local.py::test_a_session_has_a_directory_of_its_own_that_cleanup_removes
        storage/test_s3.py::test_it_is_a_storage_with_the_layout_of_the_contract
        storage/test_s3.py::test_options_of_a_session_override_the_storages""",
    ),
    3: (
        "cleanup, local and remote",
        """storage/test_conformance.py::test_cleanup_leaves_nothing_of_this_session_and_all_of_others
        storage/test_sweep.py::test_what_could_not_be_removed_is_said_and_all_else_is_removed
        storage/test_opened.py::test_an_open_session_does_all_that_a_storage_does""",
    ),
    4: (
        "keep on exit",
        """storage/test_local.py::test_files_are_kept_where_the_options_say_so
        daemon/test_purge.py::test_rm_keeps_the_storage_and_purge_empties_it_of_this_session_alone""",
    ),
    5: (
        "write answers a FileRef",
        """vfs/test_files.py::test_what_is_written_is_read_byte_for_byte_whole_or_in_part
        vfs/test_files.py::test_a_reader_sees_the_old_content_or_the_new_and_never_a_part
        storage/test_local.py::test_a_failed_write_leaves_what_was_there_and_nothing_beside_it
        storage/test_s3.py::test_it_is_a_storage_with_the_layout_of_the_contract""",
    ),
    6: (
        "read; not found is told apart",
        """vfs/test_files.py::test_what_is_written_is_read_byte_for_byte_whole_or_in_part
        storage/test_conformance.py::test_what_is_not_there_is_deleted_already_and_not_found
        storage/test_cache.py::test_a_copy_is_used_only_while_it_is_current""",
    ),
    7: (
        "exists: an error is not False",
        """vfs/test_files.py::test_exists_is_false_only_for_what_is_not_there
        storage/test_s3.py::test_exists_says_no_only_when_it_knows
        storage/test_local.py::test_exists_raises_where_it_cannot_tell""",
    ),
    8: (
        "idempotent delete",
        """vfs/test_files.py::test_deleting_what_is_not_there_is_done_and_a_directory_goes_only_when_asked
        storage/test_conformance.py::test_what_is_not_there_is_deleted_already_and_not_found""",
    ),
    9: (
        "list FileRefs, however many",
        """vfs/test_files.py::test_a_listing_is_sorted_has_all_files_below_and_takes_a_pattern
        storage/test_conformance.py::test_listings_go_on_after_a_thousand_keys
        storage/test_conformance.py::test_content_type_metadata_and_bytes_come_back""",
    ),
    10: (
        "local_path is the mountpoint",
        """storage/test_opened.py::test_where_it_is_mounted_is_its_local_path
        mount/test_embed.py::test_a_synchronous_program_mounts_in_three_lines
        mount/test_containers.py::test_an_unprivileged_container_writes_and_reads_and_the_host_sees_it""",
    ),
    11: (
        "sync_to_remote",
        """storage/test_opened.py::test_an_open_session_does_all_that_a_storage_does
        storage/test_opened.py::test_what_could_not_be_brought_there_is_an_error_with_its_reason
        storage/test_cache.py::test_sync_uploads_what_a_container_wrote_into_the_directory""",
    ),
    12: (
        "sync_from_remote",
        """vfs/test_files.py::test_files_that_were_made_elsewhere_land_in_the_session
        storage/test_base.py::test_files_made_elsewhere_are_fetched_by_sync_and_async_functions
        storage/test_s3.py::test_files_made_elsewhere_land_here""",
    ),
    13: (
        "build_file_ref, checksum, content type",
        """test_fileref.py::test_a_file_ref_says_what_the_content_is
        test_fileref.py::test_the_checksum_of_text_is_that_of_its_utf8
        test_fileref.py::test_every_type_of_the_contract_is_known""",
    ),
    14: (
        "options of Local",
        """storage/test_local.py::test_files_are_kept_where_the_options_say_so
        storage/test_url.py::test_a_file_url_is_a_directory_that_is_kept""",
    ),
    15: (
        "options of S3, endpoint, path style",
        """storage/test_endpoint.py::test_what_is_given_goes_before_what_is_found
        storage/test_endpoint.py::test_the_bucket_is_in_the_hosts_name_where_that_is_wanted
        storage/test_endpoint.py::test_without_credentials_the_message_says_what_to_set
        storage/test_url.py::test_an_s3_url_names_bucket_prefix_and_options""",
    ),
    16: (
        "Tigris without configuration",
        """storage/test_endpoint.py::test_tigris_works_with_nothing_but_flys_environment
        storage/test_url.py::test_tigris_needs_no_configuration_on_fly""",
    ),
    17: (
        "a local cache, bounded",
        """storage/test_cache.py::test_clean_copies_are_evicted_least_recently_used_first
        vfs/test_cache.py::test_reading_more_than_the_limit_keeps_to_it""",
    ),
    18: (
        "asynchronous upload whose failures are told",
        """storage/test_cache.py::test_an_upload_behind_happens_without_being_asked
        storage/test_cache.py::test_an_upload_behind_whose_failure_is_not_lost
        vfs/test_writeback.py::test_an_error_that_will_not_pass_ends_a_sync_with_the_reason""",
    ),
    19: (
        "a backend of one's own",
        """storage/test_base.py::test_a_backend_of_ones_own_serves_a_session
        storage/test_url.py::test_a_backend_of_ones_own_is_found_by_module_and_class""",
    ),
    20: (
        "configuration for all, and for one session",
        """daemon/test_defaults.py::test_the_configured_storage_is_for_sessions_that_name_none
        daemon/test_settings.py::test_every_key_is_understood
        daemon/test_serve.py::test_a_policy_change_takes_effect_without_a_remount""",
    ),
    21: (
        "on_file_created, modified, deleted, synced",
        """vfs/test_events.py::test_hooks_are_called_in_order_and_one_that_fails_harms_nothing
        vfs/test_events.py::test_the_synced_hook_is_told_what_the_persistence_has
        vfs/test_events.py::test_a_hook_that_cannot_be_called_is_refused""",
    ),
    22: (
        "telemetry of the storage",
        """vfs/test_promises.py::test_each_call_of_a_persistence_is_counted_and_told_with_its_failures
        vfs/test_events.py::test_what_reaches_the_persistence_is_told_and_what_fails_and_conflicts
        daemon/test_eyes.py::test_metrics_count_what_programs_did""",
    ),
    23: (
        "errors by type",
        """test_persistence.py::test_a_failure_reaches_the_caller_as_its_errno
        storage/test_faults.py::test_a_bucket_that_is_gone_is_not_an_empty_one
        storage/test_faults.py::test_a_clock_that_is_wrong_is_said_to_be
        http/test_callbacks_over_http.py::test_an_error_keeps_its_errno_over_http""",
    ),
    24: (
        "retries with a pause",
        """storage/test_faults.py::test_a_write_survives_a_passing_fault_and_happens_once
        storage/test_faults.py::test_a_read_ends_with_eio_in_bounded_time
        vfs/test_writeback.py::test_a_persistence_that_is_down_for_an_hour_stops_nobody_and_all_arrives""",
    ),
    25: (
        "bind mount: uid 1001, read-only root, no network",
        "mount/test_containers.py::test_an_unprivileged_container_writes_and_reads_and_the_host_sees_it",
    ),
    26: (
        "the mount outlives containers",
        """mount/test_containers.py::test_containers_one_after_another_find_what_the_earlier_ones_left
        daemon/test_docker.py::test_several_containers_share_one_mount_until_the_last_one_ends""",
    ),
    27: (
        "what containers write reaches the remote",
        """mount/test_agent_tools.py::test_what_a_container_writes_is_in_the_bucket
        examples/test_database_container.py::test_a_containers_writes_are_rows_within_the_debounce""",
    ),
    28: ("presigned URL", "storage/test_s3.py::test_a_presigned_url_opens_one_file_to_anyone"),
    29: (
        "on_write(scope, path, content, context)",
        """test_persistence.py::test_the_four_callbacks_work_with_the_paths_and_scope_of_the_contract
        vfs/test_writeback.py::test_a_new_file_is_written_at_its_last_close""",
    ),
    30: (
        "on_read(scope, path, context)",
        """test_persistence.py::test_the_four_callbacks_work_with_the_paths_and_scope_of_the_contract
        vfs/test_hydrate.py::test_a_file_comes_back_when_it_is_read""",
    ),
    31: (
        "on_delete(scope, path, context)",
        """test_persistence.py::test_the_four_callbacks_work_with_the_paths_and_scope_of_the_contract
        vfs/test_writeback.py::test_a_delete_and_a_rename_go_out_at_once""",
    ),
    32: (
        "on_list(scope, context)",
        """test_persistence.py::test_the_four_callbacks_work_with_the_paths_and_scope_of_the_contract
        vfs/test_refresh.py::test_what_the_persistence_holds_is_there_at_once""",
    ),
    33: (
        "every callback optional; without any, in the session only",
        """vfs/test_promises.py::test_each_callback_is_optional_and_what_it_would_do_stays_in_the_session
        test_persistence.py::test_an_absent_callback_is_enosys
        mount/test_routing.py::test_where_callbacks_take_no_writes_the_status_says_that_changes_stay_here
        test_routes.py::test_without_a_default_route_the_rest_stays_in_the_session""",
    ),
    34: (
        "scope: first, opaque, may be None, never kept",
        """vfs/test_promises.py::test_the_scope_comes_first_as_it_is_and_nobody_looks_at_it
        mount/test_embed.py::test_a_synchronous_program_mounts_in_three_lines
        http/test_callbacks_over_http.py::test_the_scope_is_what_the_application_makes_of_it""",
    ),
    35: ("the context", "test_persistence.py::test_every_call_is_told_its_context"),
    36: (
        "callbacks as functions",
        """test_persistence.py::test_callbacks_are_found_on_any_object
        test_persistence.py::test_load_names_a_module_or_what_is_in_it""",
    ),
    37: (
        "cache_reads (cache_bytes), fail_on_persistence_error (durability)",
        """vfs/test_cache.py::test_clean_files_go_least_recently_used_first
        vfs/test_promises.py::test_fsync_waits_for_the_persistence_where_durability_is_remote""",
    ),
    38: (
        "what a callback answers is the file's metadata",
        """test_persistence.py::test_what_on_write_answers_becomes_metadata_and_version
        vfs/test_refresh.py::test_metadata_from_the_persistence_is_visible_as_xattrs""",
    ),
    39: (
        "one filesystem for each scope; ensure, stop, list",
        """daemon/test_defaults.py::test_a_session_is_one_however_often_it_is_asked_for
        vfs/test_state.py::test_a_directory_that_is_open_is_refused_and_can_be_had_after_it_was_closed
        examples/test_database_session.py::test_two_sessions_of_two_users_keep_the_same_paths_apart""",
    ),
    40: (
        "several configurations, by base directory",
        """test_routes.py::test_the_longest_base_wins_by_whole_segments
        vfs/test_refresh.py::test_routes_have_a_persistence_each_and_a_file_can_move_between_them
        mount/test_routing.py::test_a_file_says_which_directories_are_kept_elsewhere_and_how""",
    ),
    41: ("a default for the rest", "test_routes.py::test_the_longest_base_wins_by_whole_segments"),
    42: ("read-only directories", "vfs/test_refresh.py::test_a_read_only_route_is_read_only"),
    43: ("options of a configuration", "vfs/test_promises.py::test_options_of_a_route_reach_its_callbacks"),
    44: (
        "configurations and files registered at run time",
        """mount/test_routing.py::test_a_route_is_added_to_what_up_has_mounted_and_is_there_at_the_next_up
        mount/test_routing.py::test_the_daemon_takes_routes_with_a_session_and_adds_one_in_use
        vfs/test_files_persisted.py::test_a_route_that_is_added_in_use_brings_its_files_and_takes_what_is_there
        vfs/test_files_persisted.py::test_files_that_are_known_to_be_there_are_registered_without_a_listing""",
    ),
    45: ("a new file goes out at once", "vfs/test_writeback.py::test_a_new_file_is_written_at_its_last_close"),
    46: (
        "debounce for each path, with a maximum wait",
        """vfs/test_writeback.py::test_an_edit_waits_until_nobody_has_written_for_the_debounce
        vfs/test_writeback.py::test_a_file_that_is_written_all_the_time_goes_out_after_the_maximum_wait""",
    ),
    47: (
        "content is loaded when it is read",
        """vfs/test_hydrate.py::test_a_file_comes_back_when_it_is_read
        vfs/test_refresh.py::test_fifty_thousand_files_are_there_within_two_seconds_of_their_listing""",
    ),
    48: (
        "a listing has what is here and there, sorted",
        "vfs/test_promises.py::test_a_listing_has_what_is_here_and_what_is_there_sorted",
    ),
    49: (
        "a delete goes at once and takes back what waited",
        """vfs/test_promises.py::test_a_delete_takes_back_the_write_that_was_waiting
        vfs/test_writeback.py::test_a_delete_and_a_rename_go_out_at_once""",
    ),
    50: (
        "move of a file and of a prefix; conflict, EXDEV, read-only",
        """vfs/test_files.py::test_a_move_takes_a_file_or_a_whole_directory_and_overwrites_only_when_asked
        vfs/test_files.py::test_a_read_only_session_refuses_what_would_change_it
        vfs/test_refresh.py::test_routes_have_a_persistence_each_and_a_file_can_move_between_them
        vfs/test_conflict.py::test_a_move_does_not_overwrite_what_it_does_not_know""",
    ),
    51: (
        "a move by the persistence itself",
        "vfs/test_writeback.py::test_a_renamed_directory_is_moved_file_by_file_in_the_persistence",
    ),
    52: ("metadata alone", "vfs/test_files_persisted.py::test_metadata_alone_goes_to_the_persistence_too"),
    53: ("size, times, type, checksum of a file", "vfs/test_files.py::test_stat_says_what_is_known_of_a_file"),
    54: (
        "custom metadata as xattrs",
        """vfs/test_files.py::test_metadata_is_the_user_xattrs
        mount/test_attributes.py::test_xattrs_are_set_listed_replaced_and_removed""",
    ),
    55: (
        "paths are validated",
        """vfs/test_files.py::test_a_path_that_could_leave_the_session_is_refused
        vfs/test_files.py::test_dots_within_a_name_and_needless_slashes_mean_nothing_special
        vfs/test_files.py::test_symlinks_lead_within_the_session_and_nowhere_else
        test_persistence.py::test_a_bad_entry_of_a_listing_is_left_out_and_named""",
    ),
    56: (
        "every byte, empty content too",
        """vfs/test_files.py::test_what_is_written_is_read_byte_for_byte_whole_or_in_part
        storage/test_conformance.py::test_content_type_metadata_and_bytes_come_back""",
    ),
    57: (
        "flush all, also what failed before, also at the end",
        """vfs/test_writeback.py::test_the_end_of_a_session_is_a_sync
        vfs/test_writeback.py::test_a_persistence_that_is_down_for_an_hour_stops_nobody_and_all_arrives
        mount/test_up.py::test_one_line_says_that_it_is_mounted_and_a_receipt_ends_it""",
    ),
    58: (
        "reset, discard, reindex",
        """vfs/test_files_persisted.py::test_a_reset_drops_what_is_clean_and_keeps_what_is_not_saved
        vfs/test_files_persisted.py::test_a_reset_by_force_gives_up_every_unsaved_change
        vfs/test_refresh.py::test_a_refresh_brings_what_is_new_changed_and_gone""",
    ),
    59: ("stats", "vfs/test_files_persisted.py::test_stats_say_how_much_is_where"),
    60: (
        "events, subscriptions that end and resume",
        """vfs/test_events.py::test_each_change_is_one_event_with_what_it_was_and_who_did_it
        vfs/test_events.py::test_who_follows_is_told_of_what_comes
        daemon/test_events.py::test_who_follows_sees_each_event_once_though_workers_die_and_the_session_comes_and_goes
        daemon/test_webhooks.py::test_a_failing_receiver_is_tried_again_until_it_takes_each_event_once""",
    ),
    61: (
        "it survives its clients and its server",
        """mount/test_takeover.py::test_every_operation_is_done_once_when_the_worker_is_killed_in_it
        mount/test_proof.py::test_the_death_of_all_processes_loses_no_answered_change
        vfs/test_writeback.py::test_a_deletion_that_was_not_carried_out_survives_a_crash
        daemon/test_serve.py::test_sessions_come_back_after_a_restart_and_after_a_power_cut""",
    ),
    62: (
        "files that a new session begins with",
        "daemon/test_serve.py::test_a_template_is_copied_in_or_nothing_is_made",
    ),
    63: (
        "exclusive creation",
        """vfs/test_files.py::test_create_is_exclusive_and_of_many_one_wins
        mount/test_operations.py::test_one_of_many_creates_with_o_excl_wins""",
    ),
    64: (
        "agents' tools are plain POSIX",
        "mount/test_agent_tools.py::test_list_read_range_replace_and_find_are_the_shells_own",
    ),
    65: (
        "journal, atomic spool, errors of fsync",
        """vfs/test_journal.py::test_a_failed_sync_is_never_followed_by_one_that_succeeds
        vfs/test_journal.py::test_a_tail_torn_at_any_byte_is_cut_at_the_last_whole_record
        mount/test_power_loss.py::test_after_power_loss_what_was_fsynced_is_there_and_the_rest_is_a_prefix
        vfs/test_prefix.py::test_every_prefix_of_the_journal_is_what_the_session_was_then""",
    ),
    66: (
        "the whole POSIX namespace",
        """mount/test_operations.py::test_rename_replaces_exchanges_or_refuses
        mount/test_operations.py::test_symlinks_hold_any_bytes_and_are_followed
        mount/test_operations.py::test_links_are_names_of_one_file
        vfs/test_model.py::test_the_model_tells_errors_apart""",
    ),
    67: (
        "conflicts, generations, invalidation",
        """vfs/test_conflict.py::test_theirs_keeps_the_name_and_ours_is_uploaded_beside_it
        vfs/test_writeback.py::test_an_upload_never_marks_newer_bytes_clean
        vfs/test_refresh.py::test_others_changes_appear_within_the_interval""",
    ),
    68: (
        "ranges, streams, limits of cache and quota",
        """vfs/test_hydrate.py::test_a_random_read_fetches_its_block_and_no_more
        test_persistence.py::test_ranges_and_files_have_no_limit
        vfs/test_cache.py::test_a_cache_full_of_dirty_data_is_enospc_after_a_while_and_deletes_always_work
        test_quota.py::test_a_write_beyond_the_quota_takes_what_fits_and_then_edquot""",
    ),
    69: (
        "stale mounts, signals",
        """mount/test_mountpoint.py::test_a_dead_mount_of_ours_is_taken_away_first
        mount/test_adoption.py::test_a_session_goes_on_without_its_supervisor_and_the_next_up_takes_it_over
        mount/test_up.py::test_ctrl_c_ends_it_like_sigterm""",
    ),
}


@cache
def defined(path: str) -> frozenset[str]:
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    tree = ast.parse((TESTS / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


def test_every_row_is_here() -> None:
    assert list(ROWS) == list(range(1, 70))


@pytest.mark.parametrize("row", ROWS)
def test_each_row_names_tests_that_exist(row: int) -> None:
    promise, named = ROWS[row]
    tests = named.split()
    assert promise and tests
    for test in tests:
        path, name = test.split("::")
        assert name.startswith("test_")
        assert name in defined(path), test
