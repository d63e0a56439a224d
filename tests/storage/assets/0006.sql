BEGIN TRANSACTION;
CREATE TABLE attempts (
	trial_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	started_at DATETIME NOT NULL, 
	finished_at DATETIME, 
	cause VARCHAR, 
	message VARCHAR, 
	runner JSON, 
	log VARCHAR, 
	CONSTRAINT pk_attempts PRIMARY KEY (trial_id, number), 
	CONSTRAINT fk_attempts_trial_id_trials FOREIGN KEY(trial_id) REFERENCES trials (id) ON DELETE CASCADE
);
INSERT INTO "attempts" VALUES(1,1,'2026-11-26 05:42:58.836197','2026-11-26 05:42:59.075019',NULL,NULL,NULL,NULL);
INSERT INTO "attempts" VALUES(2,1,'2026-11-26 05:42:58.836197',NULL,NULL,NULL,NULL,NULL);
CREATE TABLE autopeft_schema (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT autopeft_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "autopeft_schema" VALUES('0006');
CREATE TABLE confirmation_attempts (
	study_id INTEGER NOT NULL, 
	trial INTEGER NOT NULL, 
	replicate INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	started_at DATETIME NOT NULL, 
	finished_at DATETIME, 
	cause VARCHAR, 
	message VARCHAR, 
	runner JSON, 
	log VARCHAR, 
	CONSTRAINT pk_confirmation_attempts PRIMARY KEY (study_id, trial, replicate, number), 
	CONSTRAINT fk_confirmation_attempts_study_id_studies FOREIGN KEY(study_id) REFERENCES studies (id) ON DELETE CASCADE
);
INSERT INTO "confirmation_attempts" VALUES(1,0,1,1,'2026-11-26 05:42:59.264602','2026-11-26 05:42:59.301802','lost','the runner was killed by signal 9','{"pid": 4243, "host": "workstation", "device": "cpu"}','loading
step 3');
INSERT INTO "confirmation_attempts" VALUES(1,0,1,2,'2026-11-26 05:42:59.310000','2026-11-26 05:42:59.381802',NULL,NULL,'{"pid": 4243, "host": "workstation", "device": "cpu"}',NULL);
CREATE TABLE confirmations (
	study_id INTEGER NOT NULL, 
	trial INTEGER NOT NULL, 
	replicate INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	validation JSON NOT NULL, 
	test JSON, 
	optimizer_steps BIGINT NOT NULL, 
	attempt_count INTEGER NOT NULL, 
	cause VARCHAR, 
	message VARCHAR, 
	profile JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	finished_at DATETIME, 
	CONSTRAINT pk_confirmations PRIMARY KEY (study_id, trial, replicate), 
	CONSTRAINT fk_confirmations_study_id_studies FOREIGN KEY(study_id) REFERENCES studies (id) ON DELETE CASCADE
);
INSERT INTO "confirmations" VALUES(1,0,1,'completed','{"accuracy": 0.7}','{"accuracy": 0.65}',10,2,NULL,NULL,'{"seconds": 1.0}','2026-11-26 05:42:59.264364','2026-11-26 05:42:59.381802');
INSERT INTO "confirmations" VALUES(1,0,2,'waiting','{}','null',0,0,NULL,NULL,'{}','2026-11-26 05:42:59.264602',NULL);
CREATE TABLE importance_parts (
	importance_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	content BLOB NOT NULL, 
	CONSTRAINT pk_importance_parts PRIMARY KEY (importance_id, number), 
	CONSTRAINT fk_importance_parts_importance_id_importances FOREIGN KEY(importance_id) REFERENCES importances (id) ON DELETE CASCADE
);
INSERT INTO "importance_parts" VALUES(1,0,X'00626C6F636B73');
INSERT INTO "importance_parts" VALUES(1,1,X'20616E642077656967687473');
CREATE TABLE importances (
	id INTEGER NOT NULL, 
	"key" VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	data VARCHAR NOT NULL, 
	settings JSON NOT NULL, 
	facts JSON NOT NULL, 
	units BLOB NOT NULL, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_importances PRIMARY KEY (id), 
	CONSTRAINT uq_importances_key UNIQUE ("key")
);
INSERT INTO "importances" VALUES(1,'5ca1e','bbb','ddd','{"examples": 8, "head": "fitted", "keep": 0.1, "block": 32, "batch_size": 16}','{"device": "cpu", "seconds": "1.5", "examples": "8"}',X'756E697473','2026-11-27 09:12:31.402177');
CREATE TABLE measurements (
	trial_id INTEGER NOT NULL, 
	step BIGINT NOT NULL, 
	metric VARCHAR NOT NULL, 
	split VARCHAR NOT NULL, 
	value DOUBLE, 
	rung DOUBLE, 
	CONSTRAINT pk_measurements PRIMARY KEY (trial_id, step, metric, split), 
	CONSTRAINT fk_measurements_trial_id_trials FOREIGN KEY(trial_id) REFERENCES trials (id) ON DELETE CASCADE
);
INSERT INTO "measurements" VALUES(1,10,'accuracy','validation',0.75,1.0);
CREATE TABLE orphans (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	token BIGINT NOT NULL, 
	trial INTEGER NOT NULL, 
	content JSON NOT NULL, 
	at DATETIME NOT NULL, 
	CONSTRAINT pk_orphans PRIMARY KEY (id), 
	CONSTRAINT fk_orphans_study_id_studies FOREIGN KEY(study_id) REFERENCES studies (id) ON DELETE CASCADE
);
CREATE TABLE snapshots (
	study_id INTEGER NOT NULL, 
	"index" INTEGER NOT NULL, 
	trials INTEGER NOT NULL, 
	front JSON NOT NULL, 
	hypervolume DOUBLE NOT NULL, 
	at DATETIME NOT NULL, 
	CONSTRAINT pk_snapshots PRIMARY KEY (study_id, "index"), 
	CONSTRAINT fk_snapshots_study_id_studies FOREIGN KEY(study_id) REFERENCES studies (id) ON DELETE CASCADE
);
INSERT INTO "snapshots" VALUES(1,0,1,'[0]',0.25,'2026-11-26 05:42:59.133931');
CREATE TABLE studies (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	seed BIGINT NOT NULL, 
	definition JSON NOT NULL, 
	space_hash VARCHAR NOT NULL, 
	frame JSON NOT NULL, 
	fingerprints JSON NOT NULL, 
	versions JSON NOT NULL, 
	facts JSON NOT NULL, 
	spent JSON NOT NULL, 
	stop_requested BOOLEAN NOT NULL, 
	created_at DATETIME NOT NULL, 
	updated_at DATETIME NOT NULL, 
	lease_token BIGINT NOT NULL, 
	lease_until_s DOUBLE, 
	lease_host VARCHAR, 
	lease_pid BIGINT, 
	lease_boot VARCHAR, 
	CONSTRAINT pk_studies PRIMARY KEY (id), 
	CONSTRAINT uq_studies_name UNIQUE (name)
);
INSERT INTO "studies" VALUES(1,'small','created',3,'{"study": {"name": "small", "seed": 3}}','f00d','[{"name": "accuracy", "goal": "max", "scale": "linear", "worst": 0.5, "best": 1.0}]','{}','{}','{"steps": 10}','{"train_seconds": 0.0, "suggest_seconds": 0.0, "wall_seconds": 0.0}',0,'2026-11-26 05:42:58.246995','2026-11-26 05:42:59.555541',1,NULL,'workstation',4242,'e2a2c9f0/pid:[4026531836]:173487');
CREATE TABLE test_openings (
	study_id INTEGER NOT NULL, 
	"index" INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	opened_by VARCHAR NOT NULL, 
	trials JSON NOT NULL, 
	replicates JSON NOT NULL, 
	again BOOLEAN NOT NULL, 
	CONSTRAINT pk_test_openings PRIMARY KEY (study_id, "index"), 
	CONSTRAINT fk_test_openings_study_id_studies FOREIGN KEY(study_id) REFERENCES studies (id) ON DELETE CASCADE
);
INSERT INTO "test_openings" VALUES(1,0,'2026-11-26 05:42:59.503634','ann@host','[0]','[1]',0);
CREATE TABLE trials (
	id INTEGER NOT NULL, 
	study_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	origin VARCHAR NOT NULL, 
	baseline VARCHAR, 
	configuration JSON NOT NULL, 
	hash VARCHAR NOT NULL, 
	objectives JSON NOT NULL, 
	known JSON NOT NULL, 
	trainable_params BIGINT NOT NULL, 
	head_params BIGINT NOT NULL, 
	rung DOUBLE, 
	optimizer_steps BIGINT NOT NULL, 
	replicate INTEGER NOT NULL, 
	pack INTEGER NOT NULL, 
	attempt_count INTEGER NOT NULL, 
	cause VARCHAR, 
	message VARCHAR, 
	profile JSON NOT NULL, 
	details JSON NOT NULL, 
	created_at DATETIME NOT NULL, 
	started_at DATETIME, 
	finished_at DATETIME, 
	CONSTRAINT pk_trials PRIMARY KEY (id), 
	CONSTRAINT uq_trials_study_id_number UNIQUE (study_id, number), 
	CONSTRAINT fk_trials_study_id_studies FOREIGN KEY(study_id) REFERENCES studies (id) ON DELETE CASCADE
);
INSERT INTO "trials" VALUES(1,1,0,'completed','searcher',NULL,'{"lora": [{"layers": [0, 1], "sites": ["query"], "rank": 4}], "sparsity": {"rule": "none"}, "training": {"learning_rate": 0.001, "warmup_ratio": 0.06, "weight_decay": 0}}','f4f690ea71f29502','{"accuracy": 0.75}','{}',3072,770,1.0,10,0,0,1,NULL,NULL,'{"seconds": 2.5}','{}','2026-11-26 05:42:58.640179','2026-11-26 05:42:58.836197','2026-11-26 05:42:59.040524');
INSERT INTO "trials" VALUES(2,1,1,'running','searcher',NULL,'{"lora": [{"layers": [0, 1], "sites": ["query"], "rank": 8}], "sparsity": {"rule": "none"}, "training": {"learning_rate": 0.001, "warmup_ratio": 0.06, "weight_decay": 0}}','6e48a25266f61bf6','{}','{}',6144,770,NULL,0,0,0,1,NULL,NULL,'{}','{}','2026-11-26 05:42:58.640425','2026-11-26 05:42:58.836197',NULL);
CREATE INDEX ix_importances_backbone_data ON importances (backbone, data);
CREATE INDEX ix_trials_study_id_state_cause ON trials (study_id, state, cause);
CREATE INDEX ix_orphans_study_id ON orphans (study_id);
COMMIT;
