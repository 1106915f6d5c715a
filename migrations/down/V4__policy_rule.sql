DROP VIEW wall.policy_rule;
DROP TABLE casebook.policy_rule;
