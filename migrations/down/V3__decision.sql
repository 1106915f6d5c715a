DROP VIEW wall.override, wall.critic_output, wall.decision;
DROP TABLE casebook.override, casebook.critic_output, casebook.decision;
