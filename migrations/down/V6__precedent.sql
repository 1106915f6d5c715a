DROP VIEW wall.precedent_reference, wall.precedent;
DROP TABLE casebook.precedent_reference, casebook.precedent;
