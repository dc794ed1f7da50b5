-- Trades have an origin, each stands once by its id whoever tells it, and a gap of trades says when REST was read over all of it.
--
-- Takes some ten seconds a million trades, whose indexes are made anew; nobody can read or write the table meanwhile.

ALTER TABLE trades ADD COLUMN origin text NOT NULL DEFAULT 'stream';   -- stream, rest, or import-NAME

-- What was told of a trade otherwise than its row has it. The row stays as it was told first.
CREATE TABLE trade_differences (
    recv_us        bigint   NOT NULL,
    exchange_us    bigint   NOT NULL,
    count          bigint   NOT NULL,
    market_id      integer  NOT NULL,
    yes_price      smallint NOT NULL,
    no_price       smallint NOT NULL,
    taker_side     smallint NOT NULL,
    is_block_trade boolean,
    trade_id       text     NOT NULL,
    origin         text     NOT NULL,    -- of what is told here
    PRIMARY KEY (market_id, trade_id, origin, exchange_us)
);
ALTER TABLE trade_differences ENABLE ROW LEVEL SECURITY;

-- A trade told with two times had two rows so far: the later one differs.
WITH later AS (
    DELETE FROM trades USING (
        SELECT market_id, trade_id, min(exchange_us) AS first_us FROM trades GROUP BY market_id, trade_id HAVING count(*) > 1
    ) AS twice
    WHERE trades.market_id = twice.market_id AND trades.trade_id = twice.trade_id AND exchange_us > first_us
    RETURNING trades.*
)
INSERT INTO trade_differences
SELECT recv_us, exchange_us, count, market_id, yes_price, no_price, taker_side, is_block_trade, trade_id, origin FROM later;

ALTER TABLE trades DROP CONSTRAINT trades_pkey, ADD PRIMARY KEY (market_id, trade_id);
CREATE INDEX trades_at ON trades (market_id, exchange_us);

ALTER TABLE gaps ADD COLUMN filled_us bigint, ADD COLUMN filled_from text;   -- of channel trade: when, and "rest"
