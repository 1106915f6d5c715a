DROP VIEW wall.metrics_snapshot, wall.service_health;
DROP TABLE casebook.metrics_snapshot, casebook.service_health;
