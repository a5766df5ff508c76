"""The names that Fluent Bit accepts: its plugins, and the keys of plugins that are often used with ours. Data, without rules.

The kind of a key's value follows after a colon. `a|b`: one of these words. `*`: the key may occur more than once in a section.
`...`: any key that begins with this. All names are in lower case, because Fluent Bit ignores case.

Source: the configuration maps of Fluent Bit 5.1.1. How it treats other values was tested (docs/facts.md, "Fluent Bit").
"""

from __future__ import annotations

PLUGINS = {
    "input": """
        blob calyptia_fleet collectd cpu disk docker docker_events dummy ebpf elasticsearch emitter event_test
        event_tracing_windows event_type exec exec_wasi fluentbit_logs fluentbit_metrics forward gpu_metrics head health
        http kafka kmsg kubernetes_events lib mem mqtt netif nginx_metrics node_exporter_metrics opentelemetry
        podman_metrics proc process_exporter_metrics prometheus_remote_write prometheus_scrape prometheus_textfile
        random serial splunk statsd stdin storage_backlog stream_processor syslog systemd tail tcp thermal udp
        unix_socket windows_exporter_metrics winevtlog winlog winstat
        """,
    "output": """
        azure azure_blob azure_kusto azure_logs_ingestion bigquery calyptia chronicle cloudwatch_logs counter datadog es
        exit file flowcounter forward gcs gelf http influxdb kafka kafka-rest kinesis_firehose kinesis_streams lib
        logdna loki nats nrlogs null opensearch opentelemetry oracle_log_analytics pgsql plot prometheus_exporter
        prometheus_remote_write retry s3 skywalking slack splunk stackdriver stdout syslog tcp td udp vivo_exporter
        websocket
        """,
    "filter": """
        alter_size aws checklist ecs expect geoip2 grep kubernetes log_to_metrics lua modify multiline nest nightfall
        parser record_modifier rewrite_tag stdout sysinfo tensorflow throttle throttle_size type_converter wasm
        """,
}

_LOG_LEVEL = "log_level:off|error|warn|warning|info|debug|trace"
_TLS = """
    tls:bool tls.verify:bool tls.verify_hostname:bool tls.verify_client_cert:bool tls.debug:int tls.ca_file tls.ca_path
    tls.crt_file tls.key_file tls.key_passwd tls.vhost tls.min_version tls.max_version tls.ciphers tls.proxy.ca_file
    tls.proxy.ca_path tls.proxy.verify:bool tls.proxy.verify_hostname:bool tls.windows.certstore_name
    tls.windows.use_enterprise_store tls.windows.client_thumbprints
"""
_NET = """
    net.dns.mode net.dns.resolver net.dns.prefer_ipv4:bool net.dns.prefer_ipv6:bool net.keepalive:bool
    net.keepalive_idle_timeout:time net.tcp_keepalive:bool net.tcp_keepalive_time:int net.tcp_keepalive_interval:int
    net.tcp_keepalive_probes:int net.io_timeout:time net.connect_timeout:time net.connect_timeout_log_error:bool
    net.source_address net.keepalive_max_recycle:int net.max_worker_connections:int net.proxy_env_ignore:bool
    net.share_port:bool net.backlog:int net.accept_timeout:time net.accept_timeout_log_error:bool
"""
_EVERY = f"name* alias* {_LOG_LEVEL} log_suppress_interval:time active* condition* processors* {_TLS} {_NET}"

# The keys of every plugin of a kind.
COMMON = {
    "input": f"""
        {_EVERY} tag* routable:bool mem_buf_limit:size listen* host* port:port ipv6:bool threaded:bool
        storage.type:filesystem|memory|memrb storage.pause_on_chunks_overlimit:bool thread.ring_buffer.capacity:int
        thread.ring_buffer.window:int rate_window:time rate_gate:bool rate_gate.max_bytes:size rate_gate.max_records:int
        rate_gate.backpressure:bool rate_gate.resume_ratio:number routes* telemetry* http_server.... oauth2....
    """,
    "output": f"""
        {_EVERY} match* match_regex* retry_limit* host* port:port ipv6:bool workers:int storage.total_limit_size*
        oauth2....
    """,
    "filter": f"name* alias* {_LOG_LEVEL} log_suppress_interval:time match* match_regex* active* condition*",
}

# The own keys of some plugins. Of all other plugins, only the keys of COMMON are known.
KEYS = {
    ("input", "exec"): """
        buf_size:size command exit_after_oneshot:bool interval_nsec:int interval_sec:int oneshot:bool parser
        propagate_exit_code:bool
    """,
    ("input", "http"): """
        add_remote_addr:bool buffer_chunk_size:size buffer_max_size:size enable_health_endpoint:bool http2:bool
        max_connections:size remote_addr_key success_header* successful_response_code:int tag_key workers:int
    """,
    ("input", "tail"): """
        buffer_chunk_size:size buffer_max_size:size db db.compare_filename:bool db.journal_mode db.locking:bool db.sync
        docker_mode:bool docker_mode_flush:int docker_mode_parser event_batch_size:size exclude_path exit_on_eof:bool
        file_cache_advise:bool generic.encoding ignore_active_older_files:bool ignore_older:time inotify_watcher:bool key
        multiline:bool multiline.parser* multiline_flush:time offset_key parser parser_... parser_firstline path path_key
        progress_check_interval:time progress_check_interval_nsec:int read_from_head:bool
        read_newly_discovered_files_from_head:bool refresh_interval rotate_wait:time skip_empty_lines:bool
        skip_long_lines:bool static_batch_size:size tag_regex truncate_long_lines:bool unicode.encoding watcher_interval:time
        windows.path_encoding
    """,
    ("input", "dummy"): """
        copies:int dummy fixed_timestamp:bool flush_on_startup:bool interval_nsec:int interval_sec:int metadata rate:int
        samples:int start_time_nsec:int start_time_sec:int test_hang_on_exit:bool
    """,
    ("input", "stdin"): """
        buffer_size:size parser
    """,
    ("input", "tcp"): """
        buffer_size chunk_size format parser separator source_address_key workers:int
    """,
    ("input", "forward"): """
        buffer_chunk_size:size buffer_max_size:size empty_shared_key:bool security.users* self_hostname shared_key tag_prefix
        unix_path unix_perm workers:int
    """,
    ("input", "opentelemetry"): """
        encode_profiles_as_log:bool logs_body_key logs_metadata_key profiles_support:bool raw_traces:bool
        successful_response_code:int tag_from_uri:bool tag_key
    """,
    ("input", "fluentbit_metrics"): """
        scrape_interval:time scrape_on_start:bool
    """,
    ("output", "http"): """
        allow_duplicated_headers:bool aws_auth:bool aws_external_id aws_profile aws_region aws_role_arn aws_service
        aws_sts_endpoint body_key compress:gzip|snappy|zstd format
        gelf_full_message_key gelf_host_key gelf_level_key gelf_short_message_key gelf_timestamp_key header* header_tag
        headers_key http.read_idle_timeout:time http.response_timeout:time http_method:post|put http_passwd http_user
        json_date_format json_date_key log_response_payload:bool oauth2.audience oauth2.auth_method oauth2.client_id
        oauth2.client_secret oauth2.connect_timeout:time oauth2.enable:bool oauth2.jwt_aud oauth2.jwt_cert_file
        oauth2.jwt_header oauth2.jwt_key_file oauth2.jwt_ttl_seconds:int oauth2.refresh_skew_seconds:int oauth2.resource
        oauth2.scope oauth2.timeout:time oauth2.token_url oauth2.user_agent proxy uri
    """,
    ("output", "loki"): """
        auto_kubernetes_labels:bool bearer_token buffer_size:size compress:gzip drop_single_key header* http_passwd http_user
        label_keys label_map_path labels line_format:json|key_value remove_keys structured_metadata
        structured_metadata_map_keys tenant_id tenant_id_key tenant_id_key_error_handling uri
    """,
    ("output", "stdout"): """
        format json_date_format json_date_key
    """,
    ("output", "null"): """
        format json_date_format json_date_key
    """,
    ("output", "file"): """
        csv_column_names:bool delimiter enable_strftime:bool fallback_file fallback_path file format label_delimiter
        max_dynamic_files:int mkdir:bool on_limit_reached on_missing_field path rotate:bool rotate_gzip:bool
        rotate_max_files:int rotate_max_size:size template
    """,
    ("output", "forward"): """
        add_option* compress empty_shared_key:bool fluentd_compat:bool password require_ack_response:bool
        retain_metadata_in_forward_mode:bool self_hostname send_options:bool shared_key tag time_as_integer:bool unix_path
        upstream username
    """,
    ("output", "es"): """
        aws_auth:bool aws_external_id aws_profile aws_region aws_role_arn aws_service_name aws_sts_endpoint buffer_size:size
        cloud_auth cloud_id compress current_time_index:bool generate_id:bool http_api_key http_passwd http_user id_key
        include_tag_key:bool index logstash_dateformat logstash_format:bool logstash_prefix logstash_prefix_key
        logstash_prefix_separator path pipeline replace_dots:bool suppress_type_name:bool tag_key time_key time_key_format
        time_key_nanos:bool trace_error:bool trace_output:bool type upstream write_operation
    """,
    ("output", "opensearch"): """
        aws_auth:bool aws_external_id aws_profile aws_region aws_role_arn aws_service_name aws_sts_endpoint buffer_size:size
        compress current_time_index:bool generate_id:bool http_passwd http_user id_key include_tag_key:bool index
        logstash_dateformat logstash_format:bool logstash_prefix logstash_prefix_key logstash_prefix_separator path pipeline
        replace_dots:bool suppress_type_name:bool tag_key time_key time_key_format time_key_nanos:bool trace_error:bool
        trace_output:bool type write_operation
    """,
    ("output", "s3"): """
        authorization_endpoint_bearer_token authorization_endpoint_password authorization_endpoint_url
        authorization_endpoint_username auto_retry_requests:bool blob_database_file bucket canned_acl compression content_type
        endpoint external_id file_delivery_attempt_limit:int format json_date_format json_date_key log_key
        part_delivery_attempt_limit:int part_size:size preserve_data_ordering:bool profile quarantine_dir_limit_size:size
        region retry_exhausted_action role_arn s3_key_format s3_key_format_tag_delimiters send_content_md5:bool
        static_file_path:bool storage_class store_dir sts_endpoint total_file_size:size upload_chunk_size:size
        upload_part_freshness_limit:time upload_parts_timeout:time upload_timeout:time use_put_object:bool
    """,
    ("output", "splunk"): """
        auto_extract_timestamp:bool channel compress event_field* event_host event_index event_index_key event_key
        event_source event_sourcetype event_sourcetype_key http_buffer_size:size http_debug_bad_request:bool http_passwd
        http_user splunk_send_raw:bool splunk_token
    """,
    ("filter", "grep"): """
        exclude* logical_op regex*
    """,
    ("filter", "lua"): """
        call code enable_flb_null:bool protected_mode:bool script time_as_table:bool type_array_key type_int_key
    """,
    ("filter", "modify"): """
        add* condition* copy* hard_copy* hard_rename* move_to_end* move_to_start* remove* remove_regex* remove_wildcard*
        rename* set*
    """,
    ("filter", "nest"): """
        add_prefix nest_under nested_under operation remove_prefix wildcard*
    """,
    ("filter", "parser"): """
        key_name parser* preserve_key:bool reserve_data:bool unescape_key
    """,
    ("filter", "record_modifier"): """
        allowlist_key* record* remove_key* uuid_key whitelist_key*
    """,
    ("filter", "rewrite_tag"): """
        emitter_mem_buf_limit:size emitter_name emitter_storage.type rule*
    """,
    ("filter", "throttle"): """
        interval print_status:bool rate:number window:int
    """,
}

SERVICE = f"""
    {_LOG_LEVEL} flush:number grace:int daemon:bool log_file parsers_file* plugins_file* streams_file* coro_stack_size:int
    flush.adaptive:bool flush.adaptive.min_interval:number flush.adaptive.max_interval:number
    flush.adaptive.low_pressure:number flush.adaptive.medium_pressure:number flush.adaptive.high_pressure:number
    flush.adaptive.up_steps:int flush.adaptive.down_steps:int
    http_server:bool http_listen http_port:port health_check:bool hc_errors_count:int hc_retry_failure_count:int hc_period:int
    dns.mode dns.resolver dns.prefer_ipv4:bool dns.prefer_ipv6:bool
    storage.path storage.sync:normal|full storage.metrics:bool storage.checksum:bool storage.backlog.mem_limit:size
    storage.backlog.flush_on_shutdown:bool storage.max_chunks_up:int storage.delete_irrecoverable_chunks:bool
    storage.trim_files:bool storage.type:filesystem|memory|memrb storage.inherit:bool storage.keep.rejected:bool
    storage.rejected.path storage.rejected.limit:size multiline_buffer_limit scheduler.cap:int scheduler.base:int
    json.escape_unicode:bool json.convert_nan_to_null:bool sp.convert_from_str_to_num:bool security.fips_mode:bool
    hot_reload:bool hot_reload.ensure_thread_safety:bool hot_reload.timeout:int enable_chunk_trace:bool windows.maxstdio:int
    telemetry*
"""

PARSER = """
    name format:regex|json|ltsv|logfmt regex skip_empty_values:bool time_key time_format time_keep:bool time_strict:bool
    time_system_timezone:bool time_offset time_zone logfmt_no_bare_keys:bool types decode_field* decode_field_as*
"""

SECTIONS = """
    service parser multiline_parser stream_processor stream_task plugins upstream upstream_servers node custom input filter
    output env
    """
