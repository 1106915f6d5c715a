DROP VIEW wall.consensus, wall.verification, wall.claim;
DROP TABLE casebook.consensus, casebook.verification, casebook.claim;
