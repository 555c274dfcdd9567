use super::*;

fn base() -> Vec<(&'static str, &'static str)> {
    vec![
        ("PDS_JWT_SECRET", "0123456789abcdef0123"),
        ("PDS_ADMIN_PASSWORD", "hunter2hunter2"),
        (
            "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX",
            "1111111111111111111111111111111111111111111111111111111111111111",
        ),
    ]
}

fn read(extra: &[(&str, &str)]) -> Result<(Config, Vec<String>), ConfigError> {
    let all = base().into_iter().chain(extra.iter().copied());
    Config::from_vars(all.map(|(k, v)| (k.to_owned(), v.to_owned())))
}

#[test]
fn the_three_secrets_are_enough_and_defaults_follow_the_reference() {
    let (config, warnings) = read(&[]).unwrap();
    assert!(warnings.is_empty());
    assert_eq!(config.public_url(), "http://localhost:2583");
    assert_eq!(config.service_did.as_str(), "did:web:localhost");
    assert_eq!(config.handle_domains, [".test"]);
    assert!(config.invite_required);
    assert_eq!(config.durability, Durability::Local);
}

#[test]
fn every_problem_is_reported_at_once_and_no_secret_is_shown() {
    let error = Config::from_vars(
        [
            ("PDS_JWT_SECRET", "short"),
            ("PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX", "deadbeef-not-hex"),
            ("PDS_PORT", "99999"),
            ("PDS_SERVICE_HANDLE_DOMAINS", "example.com"),
            ("PDS_DURABILITY", "remote"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned())),
    )
    .unwrap_err();
    let text = error.to_string();
    for name in [
        "PDS_JWT_SECRET",
        "PDS_ADMIN_PASSWORD",
        "ROTATION_KEY",
        "PDS_PORT",
        "start with a dot",
        "PDS_DURABILITY",
    ] {
        assert!(text.contains(name), "{name} missing in: {text}");
    }
    assert!(!text.contains("deadbeef"));
    assert!(!text.contains("'short'"));
}

#[test]
fn unknown_names_are_warned_about_with_the_nearest_known_one() {
    let (_, warnings) = read(&[
        ("PDS_HOSTNAM", "x"),
        ("PDS_LEXICON_AUTHORITY_DID", "did:web:example.com"),
        ("HOME", "/"),
    ])
    .unwrap();
    assert_eq!(warnings.len(), 2);
    assert!(warnings.iter().any(|w| w.contains("did you mean PDS_HOSTNAME")));
    assert!(
        warnings
            .iter()
            .any(|w| w.contains("PDS_LEXICON_AUTHORITY_DID has no effect"))
    );
}

#[test]
fn a_window_that_keeps_what_was_removed_longer_than_the_maximum_is_warned_about() {
    let with = |window, url| {
        let (config, warnings) = read(&[
            ("PDS_PITR_WINDOW_DAYS", window),
            ("PDS_REPLICA_URL", url),
            ("PDS_HOSTNAME", "pds.example.com"),
        ])
        .unwrap();
        (config.pitr_window.as_secs() / 86_400, warnings)
    };
    let url = "file:///replica";
    assert_eq!(with("7", url), (7, vec![]));
    assert_eq!(with("0", url), (0, vec![]));
    let (days, warnings) = with("8", url);
    assert_eq!((days, warnings.len()), (8, 1));
    assert!(warnings[0].contains("PDS_DELETION_MAX_AGE_DAYS"), "{warnings:?}");
}

#[test]
fn a_replica_makes_remote_the_default_durability() {
    let url = "https://acct.blob.core.windows.net/pds/prod/one";
    let (config, _) = read(&[("PDS_REPLICA_URL", url), ("PDS_HOSTNAME", "pds.example.com")]).unwrap();
    assert_eq!(config.durability, Durability::Remote);
    let Some(Replica::Azure(azure)) = &config.replica else {
        panic!("not azure")
    };
    assert_eq!(
        (azure.container.as_str(), azure.prefix.as_str()),
        ("pds", "prod/one")
    );
    assert_eq!(azure.service_url, "https://acct.blob.core.windows.net");
    assert!(matches!(config.blobs, BlobPlace::Replica));
}

#[test]
fn the_emulator_url_keeps_its_account_in_the_path() {
    let (config, _) = read(&[
        ("PDS_REPLICA_URL", "http://127.0.0.1:10000/devstoreaccount1/pds"),
        ("PDS_REPLICA_AZURE_AUTH", "shared-key"),
        ("PDS_REPLICA_AZURE_ACCOUNT_KEY", "c2VjcmV0"),
    ])
    .unwrap();
    let Some(Replica::Azure(azure)) = &config.replica else {
        panic!("not azure")
    };
    assert_eq!(azure.service_url, "http://127.0.0.1:10000/devstoreaccount1");
    assert!(
        matches!(&azure.auth, AzureAuthSettings::SharedKey { account, .. } if account == "devstoreaccount1")
    );
    assert!(!format!("{config:?}").contains("c2VjcmV0"));
}

#[test]
fn a_bucket_is_a_replica_and_has_settings_of_its_own() {
    let url = ("PDS_REPLICA_URL", "s3://pds/prod");
    let missing = read(&[url]).unwrap_err().to_string();
    assert!(missing.contains("PDS_REPLICA_S3_REGION"), "{missing}");
    let (config, warnings) = read(&[
        url,
        ("PDS_REPLICA_S3_ENDPOINT", "http://127.0.0.1:9000"),
        ("PDS_REPLICA_S3_ACCESS_KEY_ID", "id"),
        ("PDS_REPLICA_S3_SECRET_ACCESS_KEY", "c2VjcmV0"),
    ])
    .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let Some(Replica::S3(s3)) = &config.replica else {
        panic!("not S3")
    };
    assert_eq!((s3.bucket.as_str(), s3.prefix.as_str()), ("pds", "prod"));
    assert_eq!(config.durability, Durability::Remote);
    assert!(matches!(config.blobs, BlobPlace::Replica));
    let shown = format!("{config:?} {:?}", config.summary());
    assert!(!shown.contains("c2VjcmV0"), "{shown}");
}

#[test]
fn media_blobs_go_where_the_references_variables_say() {
    let bucket = [
        ("PDS_BLOBSTORE_S3_BUCKET", "media"),
        ("PDS_BLOBSTORE_S3_REGION", "eu-central-1"),
        ("PDS_BLOBSTORE_S3_FORCE_PATH_STYLE", "true"),
        ("PDS_BLOBSTORE_S3_UPLOAD_TIMEOUT_MS", "20000"),
    ];
    let (config, warnings) = read(&bucket).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let BlobPlace::S3(s3) = &config.blobs else {
        panic!("{:?}", config.blobs)
    };
    assert!(s3.bucket == "media" && s3.region == "eu-central-1" && s3.path_style);
    let both = [bucket[0], bucket[1], ("PDS_BLOBSTORE_DISK_LOCATION", "/blobs")];
    assert!(
        read(&both)
            .unwrap_err()
            .to_string()
            .contains("exclude each other")
    );
    let half = [bucket[0], bucket[1], ("PDS_BLOBSTORE_S3_ACCESS_KEY_ID", "id")];
    assert!(read(&half).unwrap_err().to_string().contains("both or neither"));
    for (value, problem) in [
        ("replica", "needs a PDS_REPLICA_URL"),
        ("s3", "PDS_BLOBSTORE_S3_BUCKET"),
        ("cloud", "disk, replica or s3"),
    ] {
        let error = read(&[("PDS_BLOBSTORE", value)]).unwrap_err().to_string();
        assert!(error.contains(problem), "{value}: {error}");
    }
}

#[test]
fn identities_are_refused_over_plain_http() {
    assert!(read(&[("PDS_REPLICA_URL", "http://acct.blob.core.windows.net/pds")]).is_err());
}

#[test]
fn a_secret_may_come_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwt");
    std::fs::write(&path, "a-secret-of-many-bytes\n").unwrap();
    let vars = base()
        .into_iter()
        .filter(|(k, _)| *k != "PDS_JWT_SECRET")
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
    let file = [("PDS_JWT_SECRET_FILE".to_owned(), path.display().to_string())];
    let (config, _) = Config::from_vars(vars.chain(file)).unwrap();
    assert_eq!(config.jwt_secret.expose(), "a-secret-of-many-bytes");
}

#[test]
fn cheaper_tiers_are_off_bounded_by_their_minimum_and_warned_of_where_they_do_not_pay() {
    let (config, warnings) = read(&[]).unwrap();
    assert!(!config.replica_ageing.is_on());
    let told = |warnings: &[String]| {
        warnings
            .iter()
            .filter(|text| text.contains("cheaper tier"))
            .count()
    };
    assert_eq!(told(&warnings), 0);
    let (cool, cold) = ("PDS_REPLICA_COOL_AFTER_DAYS", "PDS_REPLICA_COLD_AFTER_DAYS");
    let azure = ("PDS_REPLICA_URL", "https://acct.blob.core.windows.net/pds");
    let (config, warnings) = read(&[azure, (cool, "30"), (cold, "90")]).unwrap();
    let days = |days: u64| Some(Duration::from_secs(days * 86_400));
    assert_eq!(
        (config.replica_ageing.cool_after, config.replica_ageing.cold_after),
        (days(30), days(90))
    );
    assert_eq!(told(&warnings), 2, "{warnings:?}");
    let (_, warnings) = read(&[("PDS_REPLICA_URL", "file:///replica"), (cold, "90")]).unwrap();
    assert_eq!(told(&warnings), 1, "{warnings:?}");
    let rarely = [
        azure,
        ("PDS_COMPACTION_FORCE_AFTER_DAYS", "365"),
        ("PDS_DRILL_INTERVAL_HOURS", "0"),
        ("PDS_SCRUB_INTERVAL_HOURS", "4380"),
        (cold, "180"),
    ];
    let (_, warnings) = read(&rarely).unwrap();
    assert_eq!(told(&warnings), 0, "{warnings:?}");
    for wrong in [
        vec![(cool, "29")],
        vec![(cold, "89")],
        vec![(cool, "90"), (cold, "100")],
    ] {
        let error = read(&wrong).unwrap_err();
        assert!(error.problems[0].starts_with("PDS_REPLICA_CO"), "{error}");
    }
}

#[test]
fn prices_follow_the_kind_of_store_and_what_the_operator_knows_better() {
    let azure = ("PDS_REPLICA_URL", "https://acct.blob.core.windows.net/pds");
    let (config, _) = read(&[azure]).unwrap();
    assert_eq!(config.replica_prices, Prices::AZURE_HOT_LRS);
    assert_eq!(config.replica_monthly_requests, None);
    let own = ("PDS_REPLICA_PRICES", "write=6, stored=0.02");
    let (config, _) = read(&[azure, own, ("PDS_REPLICA_MONTHLY_REQUESTS", "100000")]).unwrap();
    let expected = Prices {
        write: 6.0,
        stored: 0.02,
        ..Prices::AZURE_HOT_LRS
    };
    assert_eq!(config.replica_prices, expected);
    assert_eq!(config.replica_monthly_requests, Some(100_000));
    let (config, _) = read(&[("PDS_REPLICA_URL", "file:///replica")]).unwrap();
    assert_eq!(config.replica_prices, Prices::FREE);
    let error = read(&[azure, ("PDS_REPLICA_PRICES", "writes=6")]).unwrap_err();
    assert!(error.problems[0].starts_with("PDS_REPLICA_PRICES"), "{error}");
}

#[test]
fn a_service_needs_a_url_and_a_did_and_reports_go_to_the_moderators_by_default() {
    let url = "https://api.example.com/path?x=1";
    let (config, _) = read(&[
        ("PDS_BSKY_APP_VIEW_URL", url),
        ("PDS_BSKY_APP_VIEW_DID", "did:web:api.example.com"),
        ("PDS_MOD_SERVICE_URL", "http://mod.internal:8080"),
        ("PDS_MOD_SERVICE_DID", "did:plc:ar7c4by46qjdydhdevvrndac"),
    ])
    .unwrap();
    let upstreams = config.upstreams;
    assert_eq!(
        upstreams.app_view.unwrap().url.as_str(),
        "https://api.example.com/"
    );
    assert!(upstreams.reports.is_some() && upstreams.reports == upstreams.moderation);
    assert_eq!(config.proxy.max_response_bytes, 10_485_760);
    assert_eq!((config.proxy.max_retries, config.proxy.allow_http2), (0, false));

    let pattern = "PDS_BSKY_APP_VIEW_CDN_URL_PATTERN";
    let images = "https://cdn.example.com/img/%s/plain/%s/%s";
    let (config, warnings) = read(&[(pattern, images)]).unwrap();
    assert_eq!(config.upstreams.images.as_deref(), Some(images));
    assert!(
        warnings.iter().any(|warning| warning.contains(pattern)),
        "{warnings:?}"
    );

    for (extra, part) in [
        (vec![(pattern, "https://cdn.example.com/%s/%s")], pattern),
        (vec![(pattern, "cdn.example.com/%s/%s/%s")], pattern),
        (
            vec![("PDS_BSKY_APP_VIEW_URL", url)],
            "PDS_BSKY_APP_VIEW_URL needs PDS_BSKY_APP_VIEW_DID",
        ),
        (
            vec![("PDS_MOD_SERVICE_URL", url), ("PDS_MOD_SERVICE_DID", "nobody")],
            "PDS_MOD_SERVICE_DID: 'nobody' is not a DID",
        ),
        (
            vec![
                ("PDS_REPORT_SERVICE_URL", "https://a:b@x.example"),
                ("PDS_REPORT_SERVICE_DID", "did:web:x.example"),
            ],
            "PDS_REPORT_SERVICE_URL must be",
        ),
    ] {
        let error = read(&extra).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("a:b"), "{error}");
    }
    let (_, warnings) = read(&[("PDS_BSKY_APP_VIEW_DID", "did:web:api.example.com")]).unwrap();
    assert_eq!(
        warnings,
        ["PDS_BSKY_APP_VIEW_DID has no effect without PDS_BSKY_APP_VIEW_URL"]
    );
}

#[test]
fn what_cannot_be_as_the_operator_meant_stops_the_start_with_a_reason() {
    for (name, value, part) in [
        (
            "PDS_ENTRYWAY_URL",
            "https://entryway.example.com",
            "resource server",
        ),
        ("PDS_ENTRYWAY_ADMIN_TOKEN", "hunter2", "resource server"),
        ("PDS_PLC_ROTATION_KEY_KMS_KEY_ID", "key", "ROTATION_KEY_K256"),
        (
            "PDS_REDIS_SCRATCH_ADDRESS",
            "redis://:hunter2@redis:6379",
            "host:port",
        ),
        ("PDS_REDIS_SCRATCH_ADDRESS", "rediss://redis:6379", "host:port"),
        ("PDS_REDIS_SCRATCH_ADDRESS", "redis:port", "host:port"),
        (
            "PDS_RATE_LIMIT_BYPASS_IPS",
            "192.0.2.0/24,everybody",
            "'everybody'",
        ),
        ("PDS_TRUSTED_PROXIES", "10.0.0.0/40", "'10.0.0.0/40'"),
        (
            "PDS_EMAIL_SMTP_URL",
            "smtp://user:hunter2@mail.example.com",
            "needs PDS_EMAIL_FROM_ADDRESS",
        ),
        ("PDS_EMAIL_FROM_ADDRESS", "a@b.co", "needs PDS_EMAIL_SMTP_URL"),
        (
            "PDS_MODERATION_EMAIL_ADDRESS",
            "a@b.co",
            "needs PDS_MODERATION_EMAIL_SMTP_URL",
        ),
        ("PDS_LOGO_URL", "javascript:alert(1)", "http or https URL"),
        ("PDS_PRIMARY_COLOR", "red;}", "a colour"),
    ] {
        let error = read(&[(name, value)]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(part), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn rate_limits_are_off_unless_they_are_asked_for_and_redis_may_be_a_url_without_a_password() {
    let (config, warnings) = read(&[("PDS_RATE_LIMIT_BYPASS_KEY", "x")]).unwrap();
    assert!(!config.rate_limits.enabled);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for (address, host, port) in [
        ("redis", "redis", 6379),
        ("redis.internal:7000", "redis.internal", 7000),
        ("redis://10.0.0.1:7000/", "10.0.0.1", 7000),
        ("[::1]:7000", "::1", 7000),
    ] {
        let (config, warnings) = read(&[
            ("PDS_RATE_LIMITS_ENABLED", "true"),
            ("PDS_REDIS_SCRATCH_ADDRESS", address),
            ("PDS_REDIS_SCRATCH_PASSWORD", "hunter2"),
        ])
        .unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let redis = config.rate_limits.redis.as_ref().unwrap();
        assert_eq!((redis.host.as_str(), redis.port), (host, port));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}

#[test]
fn protection_from_strangers_addresses_follows_development_mode_unless_it_is_set() {
    let allows = |extra: &[(&str, &str)]| read(extra).unwrap().0.allow_local;
    let dev = ("PDS_DEV_MODE", "true");
    assert!(!allows(&[]));
    assert!(allows(&[dev]));
    assert!(!allows(&[dev, ("PDS_DISABLE_SSRF_PROTECTION", "false")]));
    assert!(allows(&[("PDS_DISABLE_SSRF_PROTECTION", "true")]));
}
