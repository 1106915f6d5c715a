DROP FUNCTION wall.credential(uuid), wall.standing(text);
DROP VIEW wall.api_token_secret, wall.api_token, wall.tenant;
DROP TABLE casebook.api_token_secret, casebook.api_token, casebook.tenant;
